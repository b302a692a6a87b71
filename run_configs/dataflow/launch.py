"""What the launcher of the Flex Template runs: the template's parameters are flags of a verb of bulktag.

Parameters have underscores where bulktag's flags have hyphens. The job is written where the service looks for it, and
publishes by its own last step: this program ends before it begins.
"""

import dataclasses
import os
import sys

from bulktag.pipeline.cli import main
from bulktag.pipeline.config import JOBS


def to_flags(verb: str, arguments: list[str]) -> list[str]:
    """`--run_date=X`, as the service passes it, as the flag of the verb; Beam's own options stay as they are."""
    names = {field.name for field in dataclasses.fields(JOBS[verb])}
    flags = []
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        flags.append(f"--{name.replace('_', '-')}{equals}{value}" if name in names else argument)
    return flags


if __name__ == "__main__":
    verb = os.environ.get("BULKTAG_VERB", "tag")
    main([verb, "--detach", *to_flags(verb, sys.argv[1:])])
