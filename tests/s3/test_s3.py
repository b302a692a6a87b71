"""Jobs with every path in an S3 bucket, against a local server of its API over a real socket."""

import pytest

from bulktag.pipeline.cli import run_command
from bulktag.transforms import files

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def s3():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """Name of a new bucket; found through the settings that every program for S3 hears."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="photos-of-mine")
    return "photos-of-mine"


def test_images_are_tagged_from_bucket_to_bucket(bucket, demo_images, bundle_dir):
    import boto3

    client, names = boto3.client("s3"), []
    for path in sorted(demo_images.glob("circle/*"))[:8]:
        names.append(f"in/{path.name}")
        client.upload_file(str(path), bucket, names[-1])
    client.put_object(Bucket=bucket, Key="in/broken.jpg", Body=b"no image")
    files.write_folder(lambda folder: _copy(bundle_dir, folder), f"s3://{bucket}/model")
    for _ in range(2):
        code = run_command(["tag", "--input", f"s3://{bucket}/in", "--model", f"s3://{bucket}/model", "--output",
                            f"s3://{bucket}/out", "--max-error-share", "0.2"])  # fmt: skip
        assert code == 0
    import pyarrow.dataset

    local = files.fetch_folder(f"s3://{bucket}/out")
    rows = pyarrow.dataset.dataset(f"{local}/tags", partitioning="hive").to_table().to_pylist()
    assert sorted(row["uri"] for row in rows) == [f"s3://{bucket}/{name}" for name in names]
    errors = pyarrow.dataset.dataset(f"{local}/errors", partitioning="hive").to_table().to_pylist()
    assert [(row["uri"], row["error_type"]) for row in errors] == [(f"s3://{bucket}/in/broken.jpg", "not_an_image")]
    assert files.exists(f"s3://{bucket}/out/_SUCCESS")
    assert not [found.uri for found in files.list_below(f"s3://{bucket}/out") if "/.bulktag" in found.uri]


def _copy(source, target):
    import shutil

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
