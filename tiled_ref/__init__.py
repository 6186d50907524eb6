"""tiled-ref: tiled ensembles for high-resolution anomaly detection, readable and measured.

Rolih, Ameln, Vaidya, Akcay, "Divide and Conquer: High-Resolution Industrial Anomaly
Detection via Memory Efficient Tiled Ensemble", CVPR Workshops 2024.

THE LEGEND: the letters that name dimensions in every comment and docstring.
Capitals belong to the image, small letters to the tile.

    N       images in a set                 B       images (or tiles) in a batch
    H, W    image height and width, px      h, w    tile height and width, px
    s       stride between tile starts, px  T       tiles of one image, rows * cols
    rows, cols   tiles down and across; (i, j) is a tile's row and column, from 0
    C       channels                        D       channels kept by PaDiM
    Hf, Wf  feature map of an image         hf, wf  feature map of a tile
    P       positions of a feature map      R       ground-truth regions of a set

Parameters with the same meaning everywhere, not explained again:

    dataset, arch, category, setup : str, names as on the command line; a setup whose sizes
        matter is a setups.Setup
    metric : str, "image_auroc", "pixel_auroc" or "pixel_aupro"
    seed : int >= 0
    device : torch.device or its name
    path, folder, out : str or path-like
    impl : "cython" or "numpy", the compiled kernel or its specification; the same bits
    threads : int or None, of the kernels (`arrays.thread_count`); no result depends on it
    grid : tiling.TileGrid
    options : cell.Options
    progress : a progress.Progress, or a callable (done, total); or None

So `# (rows, cols, N, h, w)` at the end of a line reads: one map of h x w pixels for each
of N images at each tile location.
"""

__version__ = "0.1.0"
