"""The sources of data that a study can read, one package each.

A new source needs one more line here, a folder, and a folder of the same name in `wardround_client/sources`, which
reads a hospital's files. `registry.py` defines the modules of a source's package.
"""

SOURCES = {
    "images": "wardround.sources.images",
    "records": "wardround.sources.records",
}
