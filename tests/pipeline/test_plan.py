"""`bulktag plan`: what it measures, what it computes, and whether a real job takes as long."""

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time

import pytest

from benchmarks.photos import draw_photos, link_photos
from bulktag.pipeline.cli import run_command
from bulktag.pipeline.config import PlanConfig
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.forecast import Costs, forecast, steady_s
from bulktag.pipeline.plan import list_input, run_plan
from bulktag.transforms.sources import parse_source

CPU = Costs(cores=4, list_s=1e-4, list_streams=64, read_wait_s=0.05, read_threads=32, decode_s=0.004, engine_s=0.01,
            engine_on_cpu=True, write_s=1e-4, row_bytes=400.0, start_s=10.0)  # fmt: skip
GPU = dataclasses.replace(CPU, engine_s=1 / 2000, engine_on_cpu=False)
MILLION = 1_000_000


def test_stages_that_share_cores_add_up_and_others_overlap():
    assert steady_s(CPU) == pytest.approx(0.01 + 0.0041 / 4)
    assert steady_s(GPU) == pytest.approx(0.05 / 32)  # Little's law: 32 at once, 50 ms each
    assert steady_s(dataclasses.replace(GPU, read_threads=1000)) == pytest.approx(0.0041 / 4)
    assert steady_s(dataclasses.replace(GPU, read_threads=1000, cores=1000)) == pytest.approx(1 / 2000)


@pytest.mark.parametrize(
    ("costs", "workers", "bottleneck"),
    [
        (CPU, 1, "engine"),
        (GPU, 1, "reads"),
        (dataclasses.replace(GPU, read_threads=1000), 8, "decode"),
        (dataclasses.replace(GPU, read_threads=1000, cores=64), 8, "engine"),
        (dataclasses.replace(GPU, list_streams=1), 512, "listing"),
        (GPU, 512, "start"),
        (dataclasses.replace(GPU, read_threads=1000, write_s=0.1), 1, "write"),
    ],
)
def test_the_slowest_stage_is_named(costs, workers, bottleneck):
    assert forecast(costs, MILLION, workers).bottleneck == bottleneck


def test_a_forecast_adds_up():
    found = forecast(CPU, MILLION, 8, price_per_worker_hour=0.5)
    assert found.seconds == pytest.approx(10 + MILLION * 1e-4 / 8 + MILLION / 8 * steady_s(CPU))
    assert found.images_per_s == pytest.approx(MILLION / found.seconds)
    assert found.engine_busy == pytest.approx(MILLION / 8 * 0.01 / found.seconds)
    assert found.cost == pytest.approx(8 * found.seconds / 3600 * 0.5)
    assert found.num_bytes == 400 * MILLION and found.files == 9
    assert forecast(CPU, MILLION, 1).cost is None
    seconds = [forecast(CPU, MILLION, workers).seconds for workers in (1, 2, 8, 64, 512)]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] > CPU.start_s
    assert forecast(CPU, 3, 512).files == 4
    assert forecast(CPU, 10 * MILLION, 1).files == 9  # 4 GB in files of half a GiB, and the errors


def test_a_sample_is_drawn_from_all_and_is_the_same_every_time(demo_images):
    sources = (parse_source(str(demo_images)),)
    listing = list_input(sources, 40)
    assert listing.num_images == 160 and listing.streams == 1 and listing.num_bytes > 100_000
    assert len({ref.uri for ref in listing.sample}) == 40
    assert len({ref.uri.split("/")[-2] for ref in listing.sample}) == 4
    assert list_input(sources, 40).sample == listing.sample
    assert len(list_input(sources, 1000).sample) == 160


def plan(source, bundle_dir, **settings):
    return PlanConfig(input=(str(source),), model=str(bundle_dir), sample=24, **{"start_s": 2.0, **settings})


def test_a_plan_has_a_row_for_each_number_of_workers(demo_images, bundle_dir, tmp_path, capsys):
    rows = run_plan(plan(demo_images, bundle_dir, json=str(tmp_path / "plan.json"), price_per_worker_hour=3.0))
    assert [row.workers for row in rows] == [1, 8, 64, 512]
    assert all(row.seconds > 2 and 0 < row.engine_busy < 1 for row in rows)
    out = capsys.readouterr().out
    assert "bottleneck" in out and "cost" in out and "as given" in out and "Assumed" in out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["images"] == 160 and len(found["forecasts"]) == 4
    assert min(found["costs"][name] for name in ("decode_s", "engine_s", "write_s", "row_bytes", "list_s")) > 0


def test_another_machine_can_be_described(demo_images, bundle_dir, capsys):
    (row,) = run_plan(
        plan(demo_images, bundle_dir, engine_rate=1e6, worker_cores=16, worker_counts=(4,), start_s=0.001)
    )
    assert row.workers == 4 and row.engine_busy < 0.5
    assert "16 cores" in capsys.readouterr().out


def test_what_cannot_be_used_is_counted(demo_images, bundle_dir, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(JobFailed, match="none of 1 sampled images can be used: not_an_image 1"):
        run_plan(plan(tmp_path, bundle_dir))
    for path in sorted((demo_images / "circle").iterdir())[:4]:
        shutil.copy(path, tmp_path)
    run_plan(plan(tmp_path, bundle_dir))
    assert "sampled 5, of which 1 cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input", "nothing"], 2, "found nothing there"),
        (["--input", "EMPTY"], 1, "no image matched"),
        (["--input", "EXAMPLES"], 2, "it holds no images to plan for"),
        (["--input", "EMPTY", "--runner=FlinkRunner"], 2, "expected a known option, got --runner"),
        (["--input", "EMPTY", "--sample", "0"], 2, "expected sample above 0"),
        (["--input", "EMPTY", "--worker-counts", "4", "none"], 2, "a whole number"),
    ],
)
def test_mistakes_are_one_line(arguments, code, message, tmp_path, examples_dir, bundle_dir, capsys):
    places = {"EMPTY": str(tmp_path), "EXAMPLES": str(examples_dir)}
    words = [places.get(word, word) for word in arguments]
    assert run_command(["plan", "--model", str(bundle_dir), *words]) == code
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("bulktag plan: ")]
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_real_job_takes_as_long_as_planned(workers, tmp_path):
    """Within 20%; in the median of at most five rounds, because other programs share the machine."""
    photos = link_photos(draw_photos(tmp_path / "drawn", 100), tmp_path / "photos", 3000)
    model = ["--model", "imagenet", "--backbone", "mobilenet_v2", "--weights", "random:0", "--workers", str(workers)]
    command = [sys.executable, "-c", "from bulktag.pipeline.cli import main; main()"]
    ratios = []
    for _ in range(5):
        subprocess.run([*command, "plan", "--input", photos, *model, "--worker-counts", str(workers), "--json",
                        tmp_path / "plan.json"], check=True, capture_output=True)  # fmt: skip
        start = time.perf_counter()
        subprocess.run(
            [*command, "tag", "--input", photos, *model, "--output", tmp_path / "o"], check=True, capture_output=True
        )
        seconds = time.perf_counter() - start
        ratios.append(json.loads((tmp_path / "plan.json").read_text())["forecasts"][0]["seconds"] / seconds)
        if len(ratios) % 2 and 0.8 < statistics.median(ratios) < 1.2:
            break
    print(f"planned / measured with {workers}: {ratios}")
    assert 0.8 < statistics.median(ratios) < 1.2, ratios
