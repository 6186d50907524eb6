"""anomalib's tiled ensemble on a folder of images, for the part "peer" of bench/pipeline.py.

    VENV/bin/python bench/peer_anomalib.py FOLDER [--image 512 --tile 256 --stride 128]

PaDiM as in this project: ResNet-18, layers 1 to 3, 100 channels. The backbone's weights are
random: the cost does not depend on them, and nothing is downloaded. Run in an environment with
anomalib 2.7; output goes to the current folder. Fails if a stage of anomalib fails, which anomalib
only prints.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

# Without this folder, whose cuda.py would hide NVIDIA's package `cuda` from torch.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]


def configuration(folder, image, tile, stride):
    """The pipeline's configuration, in the format of its file."""
    return {
        "seed": 42,
        "accelerator": "cpu",
        "default_root_dir": "anomalib_results",
        "tiling": {"image_size": [image] * 2, "tile_size": [tile] * 2, "stride": [stride] * 2},
        "normalization_stage": "image",
        "thresholding_stage": "image",
        "data": {
            "class_path": "anomalib.data.Folder",
            "init_args": {
                "name": "parts",
                "root": folder,
                "normal_dir": "train/good",
                "normal_test_dir": "test/good",
                "abnormal_dir": "test/defect",
                "mask_dir": "ground_truth/defect",
                "train_batch_size": 32,
                "eval_batch_size": 32,
                "num_workers": 0,
                "test_split_mode": "from_dir",
                "val_split_mode": "same_as_test",
            },
        },
        "SeamSmoothing": {"apply": True, "sigma": 2, "width": 0.1},
        "TrainModels": {
            "model": {"class_path": "Padim"},  # ResNet-18, layers 1 to 3, 100 channels
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--image", type=int, default=512)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--stride", type=int, default=128)
    args = parser.parse_args()
    import timm
    from anomalib.pipelines.tiled_ensemble import EvalTiledEnsemble, TrainTiledEnsemble

    original = timm.create_model
    timm.create_model = lambda *a, **given: original(*a, **{**given, "pretrained": False})
    path = Path("anomalib.yaml")  # JSON is YAML
    path.write_text(json.dumps(configuration(args.folder, args.image, args.tile, args.stride)))
    call = argparse.Namespace(config=path)
    train = TrainTiledEnsemble()
    train.run(call)
    EvalTiledEnsemble(train.root_dir).run(call)
    tables = sorted(Path("anomalib_results").rglob("*.csv"))
    if not tables:
        sys.exit(f"anomalib wrote no metrics; see {Path('runs/pipeline.log').resolve()}")
    metrics = " ".join(tables[-1].read_text().split())
    print(f"anomalib {version('anomalib')}: {metrics}")


if __name__ == "__main__":
    main()
