"""Packaging of bulktag.

The folders `model/`, `transforms/` and `pipeline/` are installed below the one import name `bulktag`, so that
nothing as general as `model` or `pipeline` lands in site-packages.
"""

import pathlib

from setuptools import setup

HERE = pathlib.Path(__file__).parent
VERSION = (HERE / "bulktag" / "VERSION").read_text(encoding="utf-8").strip()

# Lower bounds are the oldest versions that the tests were run with, which today are those of requirements.lock.
REQUIREMENTS = [
    "apache-beam>=2.77.0,<3",
    "grpcio>=1.85.1",
    "h5py>=3.14.0",
    "joblib>=1.6.0",
    "keras>=3.15.1",
    "numpy>=2.4.6",
    "packaging>=26.3",
    "pillow>=12.3.0",
    "pyarrow>=25.0.1",
    "pyyaml>=6.0.3",
    "requests>=2.34.2",
    "rich>=15.0.0",
    "scikit-learn>=1.9.1",
    "scipy>=1.17.1",
    "psutil>=7.2.2",
    "jinja2>=3.1.6",
    "matplotlib>=3.11.2",
]
# One TensorFlow, two forms: the CPU build brings no CUDA. It exists for Linux and Windows on x86-64; elsewhere the
# plain package is the CPU build.
CPU = [
    "tensorflow-cpu>=2.21.0,<2.22; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    "tensorflow>=2.21.0,<2.22; platform_machine != 'x86_64' and platform_machine != 'AMD64'",
]
GPU = ["tensorflow[and-cuda]>=2.21.0,<2.22"]
# For CPU fleets. NNCF rounds networks to int8; its telemetry and OpenVINO's are kept from being loaded.
OPENVINO = ["openvino>=2026.4.1", "nncf>=3.4.0"]
GCP = ["apache-beam[gcp]>=2.77.0,<3", "google-cloud-storage>=3.17.1"]
TENSORBOARD = ["tensorboard>=2.21.0"]
QUERY = ["duckdb>=2.0.0"]
# For s3://.
AWS = ["apache-beam[aws]>=2.77.0,<3", "boto3>=1.44.5"]
DEV = [
    *AWS,
    *GCP,
    *QUERY,
    *TENSORBOARD,
    *OPENVINO,
    "axe-playwright-python>=0.1.8",
    "hypothesis>=6.170.15",
    "jsonschema>=4.26.0",
    "kubernetes-validate>=1.37.0",
    "moto[server]>=5.2.5",
    "pandas>=3.1.1",
    "playwright>=1.65.2",
    "polars>=2.1.0",
    "pytest>=9.2.0",
    "pytest-timeout>=2.4.0",
    "ruff>=0.17.6",
]

setup(
    name="bulktag",
    version=VERSION,
    description="Tag millions of images with Apache Beam: bottlenecks, a trained head, Parquet of labels and scores",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=["bulktag", "bulktag.model", "bulktag.transforms", "bulktag.pipeline"],
    package_dir={
        "bulktag": "bulktag",
        "bulktag.model": "model",
        "bulktag.transforms": "transforms",
        "bulktag.pipeline": "pipeline",
    },
    package_data={"bulktag": ["VERSION"], "bulktag.model": ["data/*", "*.html"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "cpu": CPU,
        "gpu": GPU,
        "openvino": OPENVINO,
        "gcp": GCP,
        "aws": AWS,
        "tensorboard": TENSORBOARD,
        "query": QUERY,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["bulktag = bulktag.pipeline.cli:main"]},
)
