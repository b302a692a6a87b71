"""The tables open in the tools that analysts use, with what they ask most."""

import datetime

import duckdb
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset
import pytest

from bulktag.pipeline.config import TagConfig
from bulktag.pipeline.tag import run_tag

LABELS = ["circle", "plus", "square", "triangle"]
DAY = datetime.date(2026, 11, 21)


@pytest.fixture(scope="module")
def output(demo_images, bundle_dir, tmp_path_factory):
    """Two days of a nightly run: all pictures and a broken one, then one folder of them; with all columns."""
    root = tmp_path_factory.mktemp("readers")
    broken = root / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")
    common = {"model": str(bundle_dir), "output": str(root / "out"), "scores": True, "embedding": True}
    run_tag(TagConfig(input=(str(demo_images), str(broken)), run_date=str(DAY), **common))
    run_tag(TagConfig(input=(str(demo_images / "plus"),), run_date="2026-11-22", **common))
    return root / "out"


def test_duckdb(output):
    tags = f"read_parquet('{output}/tags/**/*.parquet', hive_partitioning = true)"
    errors = f"read_parquet('{output}/errors/**/*.parquet', hive_partitioning = true)"

    def ask(sql):
        with duckdb.connect() as connection:
            return connection.execute(sql).fetchall()

    of_the_day = f"FROM {tags} WHERE run_date = '{DAY}'"
    assert [label for label, _ in ask(f"SELECT top_label, count(*) {of_the_day} GROUP BY ALL ORDER BY ALL")] == LABELS
    unnested = f"SELECT tag.label, max(tag.score) FROM {tags}, unnest(tags) AS each_tag(tag) GROUP BY ALL ORDER BY ALL"
    assert [label for label, _ in ask(unnested)] == LABELS
    both = f"SELECT uri, NULL AS error_type {of_the_day} UNION ALL SELECT uri, error_type FROM {errors}"
    assert ask(f"SELECT count(DISTINCT uri), count(error_type) FROM ({both})") == [(161, 1)]
    types = dict(ask(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {tags})"))
    assert types["tagged_at"] == "TIMESTAMP WITH TIME ZONE" and types["embedding"] == "FLOAT[]"
    assert types["top_label"] == "VARCHAR" and types["run_date"] == "DATE" and types["tags"].endswith("FLOAT)[]")


def test_pandas(output):
    tags = pd.read_parquet(output / "tags")
    assert tags["uri"].nunique() == 160 and len(tags) == 200
    day = tags[tags["run_date"].astype(str) == str(DAY)]
    assert sorted(day["top_label"].value_counts().index) == LABELS
    exploded = day.explode("tags")
    assert exploded["tags"].map(lambda tag: tag["score"]).between(0, 1).all() and len(exploded) >= 160
    errors = pd.read_parquet(output / "errors")
    joined = pd.concat([day[["uri"]], errors[["uri", "error_type"]]])
    assert joined["uri"].is_unique and joined["error_type"].notna().sum() == 1
    assert str(tags["tagged_at"].dtype) == "datetime64[us, UTC]"


def test_polars(output):
    tags = pl.scan_parquet(output / "tags", hive_partitioning=True)
    day = tags.filter(pl.col("run_date").cast(pl.String) == str(DAY))
    counts = day.group_by("top_label").len().collect()
    assert sorted(counts["top_label"].cast(pl.String).to_list()) == LABELS and counts["len"].sum() == 160
    exploded = day.explode("tags").unnest("tags").group_by("label").agg(pl.col("score").max()).collect()
    assert sorted(exploded["label"].to_list()) == LABELS
    errors = pl.scan_parquet(output / "errors", hive_partitioning=True).select("uri", "error_type")
    both = pl.concat([day.select("uri"), errors], how="diagonal").collect()
    assert both["uri"].is_unique().all() and both["error_type"].null_count() == 160
    assert tags.select("embedding", "scores").head(1).collect()["scores"].list.len().to_list() == [4]


def test_pyarrow_dataset(output):
    tags = pyarrow.dataset.dataset(output / "tags", partitioning="hive")
    table = tags.to_table(filter=pyarrow.dataset.field("run_date") == str(DAY))
    assert table.num_rows == 160
    counts = table.group_by("top_label").aggregate([("uri", "count")]).to_pydict()
    assert sorted(counts["top_label"]) == LABELS
    assert sorted(pc.unique(pc.struct_field(pc.list_flatten(table["tags"]), "label")).to_pylist()) == LABELS
    errors = pyarrow.dataset.dataset(output / "errors", partitioning="hive").to_table()
    assert errors["stage"].to_pylist() == ["decode"] and errors["uri"][0].as_py().endswith("broken.jpg")
    assert table["width"].to_pylist()[0] > 0 and len(table["embedding"][0]) == 512
