"""`bulktag demo`: the whole journey on images that it draws itself."""

import os
import pathlib
import shlex
import shutil
import time

from bulktag.model.drawing import draw_demo_images
from bulktag.pipeline.classify import run_classify
from bulktag.pipeline.config import ClassifyConfig, EvaluateConfig, ExtractConfig, TagConfig, TrainConfig
from bulktag.pipeline.console import OUT, print_table, say
from bulktag.pipeline.evaluate import run_evaluate
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.tag import run_tag
from bulktag.pipeline.train import run_train

# Another seed than the training pictures': what is tagged was never seen.
TRAINING_SEED, NEW_SEED = 1, 2
NEW_PER_CLASS = 25
MARKER = ".bulktag-demo"

# About 90 of 150 pictures of a class are trained on; a quarter of all is held out for the figures.
SPLIT = (0.6, 0.15, 0.25)

QUERIES = (
    ("the tags", """\
SELECT parse_filename(uri) AS image, top_label, round(top_score, 3) AS score, width, height, bytes
FROM read_parquet('{root}/tags/**/*.parquet') ORDER BY image LIMIT 5"""),
    ("images per tag", """\
SELECT top_label, count(*) AS images, round(avg(top_score), 3) AS mean_score
FROM read_parquet('{root}/tags/**/*.parquet') GROUP BY top_label ORDER BY images DESC"""),
    ("what could not be tagged", """\
SELECT parse_filename(uri) AS image, stage, error_type, message FROM read_parquet('{root}/errors/**/*.parquet')"""),
)  # fmt: skip


def run_demo(workdir: str, images_per_class: int) -> None:
    """Draw, extract, train, evaluate, tag, classify and query.

    Args:
      workdir: folder for everything; an earlier demo's is replaced.
      images_per_class: pictures drawn a class for training, validation and test together.
    Raises:
      ValueError: `workdir` holds something that no demo wrote.
    """
    root = _prepare(workdir)
    started = time.monotonic()
    _step(
        "draw",
        f"{images_per_class} pictures of each of circle, plus, square, triangle; {NEW_PER_CLASS} new ones to tag",
    )
    draw_demo_images(root / "images", images_per_class, TRAINING_SEED)
    new = draw_demo_images(root / "new", NEW_PER_CLASS, NEW_SEED)
    broken = root / "new" / "broken.jpg"
    broken.write_bytes(new[0].read_bytes()[:400])  # so that the errors table has something to show

    paths = {name: str(root / name) for name in ("images", "new", "examples", "model", "report", "tags")}
    _step(
        "extract",
        f"bulktag extract --input {_quote(paths['images'])} --output {_quote(paths['examples'])} --backbone builtin",
    )
    run_extract(ExtractConfig(input=(paths["images"],), output=paths["examples"], backbone="builtin", split=SPLIT))
    _step("train", f"bulktag train --examples {_quote(paths['examples'])} --model {_quote(paths['model'])}")
    run_train(TrainConfig(examples=paths["examples"], model=paths["model"]))
    _step("evaluate", f"bulktag evaluate --examples {_quote(paths['examples'])} --model {_quote(paths['model'])} "
          f"--output {_quote(paths['report'])}")  # fmt: skip
    run_evaluate(EvaluateConfig(examples=paths["examples"], model=paths["model"], output=paths["report"]))
    _step(
        "tag",
        f"bulktag tag --input {_quote(paths['new'])} --model {_quote(paths['model'])} --output {_quote(paths['tags'])}",
    )
    run_tag(TagConfig(input=(paths["new"],), model=paths["model"], output=paths["tags"]))
    example = str(sorted(new)[0])
    _step("classify", f"bulktag classify --model {_quote(paths['model'])} {_quote(example)}")
    run_classify(ClassifyConfig(images=(example,), model=paths["model"], top_k=4))
    _query(paths["tags"])
    OUT.print(f"done in {time.monotonic() - started:.0f} s")
    _say_where(paths)


def _prepare(workdir: str) -> pathlib.Path:
    """An empty folder, where only an earlier demo may have been."""
    root = pathlib.Path(workdir)
    if root.exists() and not root.is_dir():
        raise ValueError(f"expected a folder or a new name for the demo, got a file: {workdir}")
    if root.is_dir() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise ValueError(
                f"expected an empty folder or that of an earlier demo, got one that holds files: {workdir}"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text("made by `bulktag demo`, replaced by the next one\n", encoding="utf-8")
    return root


def _quote(path: str) -> str:
    return shlex.quote(path)


def _step(name: str, text: str) -> None:
    say()
    say(f"== {name}: {text}")


def _query(folder: str) -> None:
    """Ask the Parquet some questions with DuckDB, where it is installed."""
    _step("query", "the Parquet, with DuckDB")
    try:
        import duckdb
    except ImportError:
        say("DuckDB is not installed: pip install 'bulktag[query]'")
        return
    with duckdb.connect() as connection:
        for title, query in QUERIES:
            sql = query.format(root=folder.replace("'", "''"))
            OUT.print(f"-- {title}\n{sql}", markup=False)
            result = connection.execute(sql)
            columns = tuple(column[0] for column in result.description)
            print_table(columns, result.fetchall())
            OUT.print()


def _say_where(paths: dict[str, str]) -> None:
    rows = [
        ("pictures", f"{paths['images']}{os.sep}CLASS{os.sep}*"),
        ("examples with bottlenecks", paths["examples"]),
        ("model bundle", paths["model"]),
        ("report, open it in a browser", f"{paths['report']}{os.sep}report.html"),
        ("tags", f"{paths['tags']}{os.sep}tags"),
        ("errors", f"{paths['tags']}{os.sep}errors"),
    ]
    print_table(("what", "where"), rows)
