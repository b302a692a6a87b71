"""An emulated store, and a stand-in for the Dataflow service."""

import pathlib
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def dataflow_store(request):
    """URL of an emulator of Google Cloud Storage."""
    if "dataflow" not in request.config.getoption("-m").replace("not dataflow", ""):
        pytest.skip("needs an emulator of Google Cloud Storage: make test-dataflow")
    sys.path.insert(0, str(REPO / "scripts"))
    import gcs_emulator

    emulator = gcs_emulator.Emulator(REPO / ".gcs")
    yield emulator.url
    emulator.stop()


@pytest.fixture
def dataflow_bucket(dataflow_store, monkeypatch):
    """A bucket of the emulator, which all gs:// of this process is."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", dataflow_store)
    from google.cloud import storage

    client = storage.Client.create_anonymous_client()
    bucket = client.bucket("dataflow-bucket")
    if not bucket.exists():
        client.create_bucket("dataflow-bucket")
    for blob in client.list_blobs("dataflow-bucket"):
        blob.delete()
    return client.bucket("dataflow-bucket")


@pytest.fixture
def dataflow(dataflow_store, tmp_path):
    """The service."""
    from dataflow_stub import DataflowStub

    stub = DataflowStub(tmp_path, dataflow_store)
    yield stub
    stub.stop()
