"""The files of a MONAI bundle that runs the exported ONNX file (https://docs.monai.io/en/stable/mb_specification.html).

    configs/metadata.json     what the model reads and returns
    configs/inference.json    images of a folder -> predictions.csv; `evaluator` is for programs with MONAI's engines
    models/model.onnx         the same bytes as model.onnx of the package
    scripts/                  a torch module around the ONNX file
    docs/README.md            the model card
    LICENSE

MONAI's specification asks for models/model.pt too, a pickled state dictionary. It is left out: loading it executes what
is in it, and the ONNX file has the same weights. The bundle therefore cannot be trained further with MONAI.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from wardround.handover.card.content import NOTICE, card_of_record
from wardround.handover.card.formats import to_markdown
from wardround.handover.package import BUNDLE
from wardround.sources.images.study import image_data
from wardround.study.describe import learns
from wardround.study.load import Study

MONAI_VERSION = "1.6.1"  # the version whose bundle commands the tests run
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
BUNDLE_VERSION = "1.0.0"
BATCH = 32
DISTANCE_COLUMN = "distance"
Record = Mapping[str, Any]


def bundle_files(record: Record, study: Study, onnx: bytes) -> dict[str, bytes]:
    """Return the content of each file of the bundle, by its path in the bundle's folder.

    Args:
        record: The content of model.json. The hashes of the bundle in it are not used, so the same files are made
            before and after they are known.
        study: The study in it.
        onnx: The content of model.onnx.
    """
    outside = {name: entry for name, entry in record["files"].items() if not name.startswith(f"{BUNDLE}/")}
    card = to_markdown(card_of_record({**record, "files": outside}, study))
    network = files("wardround.handover").joinpath("bundle_network.py").read_bytes()
    return {
        "LICENSE": licence_text(record["license"]).encode(),
        "configs/inference.json": _json(inference_config(study)),
        "configs/metadata.json": _json(metadata(record, study)),
        "docs/README.md": card.encode(),
        "models/model.onnx": onnx,
        "scripts/__init__.py": b"",
        "scripts/onnx_network.py": network,
    }


def columns_of(study: Study) -> list[str]:
    """Return the names of the columns of a prediction: the logits and the distance."""
    labels = study.data.labels
    return [*(f"logit {label}" for label in (labels[1:] if len(labels) == 2 else labels)), DISTANCE_COLUMN]


def metadata(record: Record, study: Study) -> dict[str, Any]:
    """Return the content of metadata.json.

    MONAI evaluates a text that begins with `$`, `@` or `%`, in this file too. A name or a label of the study therefore
    never stands at the beginning.
    """
    data, columns, software = image_data(study), columns_of(study), record["software"]
    shape = [data.image_size, data.image_size]
    return {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: f"exported from run {record['run']}"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": software.get("torch", "unknown").partition("+")[0],
        "numpy_version": software.get("numpy", "unknown"),
        "required_packages_version": {"onnxruntime": software.get("onnxruntime", "unknown")},
        "name": f"wardround {study.study.name}",
        "task": f"Classification: {learns(study)}",
        "description": f"A {record['architecture']} trained by federated learning. {NOTICE}",
        "authors": "the operator of the federation",
        "copyright": "see LICENSE",
        "intended_use": NOTICE,
        "data_source": "patients of the sites of the federation; their images never left the sites",
        "data_type": f"images, {data.modality}",
        "image_classes": "grey values 0..255 in the window of the study; preprocessing is inside the ONNX file",
        "label_classes": f"labels {', '.join(data.labels)}",
        "pred_classes": ", ".join(columns),
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "n/a" if data.modality == "any" else data.modality,
                    "num_channels": data.channel_count,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [0, 255],
                    "is_patch_data": False,
                    "channel_def": {str(number): f"image {number}" for number in range(data.channel_count)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "tuples",
                    "format": "classes",
                    "num_channels": len(columns),
                    "spatial_shape": [],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(number): column for number, column in enumerate(columns)},
                }
            },
        },
    }


def inference_config(study: Study) -> dict[str, Any]:
    """Return the content of inference.json.

    Images are PNG or other pictures for one or three channels, and files of numpy, uint8 (C, H, W), for other numbers.
    As in `metadata`, no text of the study stands at the beginning of a text.
    """
    channels = image_data(study).channel_count
    pictures = channels in (1, 3)
    load = (
        [
            {
                "_target_": "LoadImaged", "keys": "image", "reader": "PILReader", "reverse_indexing": False,
                "dtype": "$numpy.uint8", "ensure_channel_first": True, "image_only": True,
            }
        ]
        if pictures
        else [{"_target_": "Lambdad", "keys": "image", "func": "$onnx_network.read_array"}]
    )  # fmt: skip
    return {
        "imports": [
            "$import glob",
            "$import os",
            "$import numpy",
            "$import torch",
            "$import scripts.onnx_network as onnx_network",
        ],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'images')",
        "output_file": "$os.path.join(@bundle_root, 'predictions.csv')",
        "pattern": "*.png" if pictures else "*.npy",
        "columns": columns_of(study),
        "device": "$torch.device('cpu')",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, @pattern)))",
        "network_def": {
            "_target_": "scripts.onnx_network.OnnxNetwork",
            "path": "$os.path.join(@bundle_root, 'models', 'model.onnx')",
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                *load,
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32", "track_meta": False},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path, 'path': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": BATCH, "num_workers": 0},
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
        },
        "run": ["$onnx_network.predict(@dataloader, @inferer, @network_def, @columns, @output_file)"],
    }


def licence_text(licence: str) -> str:
    """Return the text of LICENSE for a licence's SPDX name, or `other` if the operator stated none."""
    software = "The scripts in this folder are part of Wardround and licensed under Apache-2.0.\n"
    if licence == "other":
        return (
            f"The operator of the federation has stated no licence for this model: ask before you use it.\n{software}"
        )
    return f"SPDX-License-Identifier: {licence}\n\nThis model is licensed under {licence}.\n{software}"


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
