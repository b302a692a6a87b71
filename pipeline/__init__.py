"""The jobs and the `bulktag` command."""
