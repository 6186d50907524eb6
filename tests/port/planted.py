"""A held-back list of mistakes for port.js, to see whether the checker names them.

    python tests/port/planted.py [NUMBER ...] [--port FILE]

plants each mistake alone, runs its stage and prints what the checker says.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

PORT = Path(__file__).with_name("port.js")


def _short(bits):
    """JavaScript that rounds a float64 to so many significant bits."""
    return f"((v) => {{ const t = v * {2 ** (53 - bits) + 1}; return t - (t - v); }})"


BF16, TF32 = _short(8), _short(11)
HALF = f"((v) => Math.abs(v) < 2 ** -14 ? Math.round(v * 2 ** 24) / 2 ** 24 : {TF32}(v))"

SCORE = "data.reduce((a, b) => Math.max(a, b))"
PLACE = "Math.fround((x + 0.5) * scale - 0.5)"
LEVEL = "(upper + lower + 2) >> 2"
KERNEL = "((d * C + c) * side + dy) * side + dx"
NORM = "[weight, bias, runningMean, runningVariance] = parts"
DEVIATION = "const deviation = Math.sqrt(variance + 1e-5)"
PRODUCT = "out.data[o] += x.data[i] * weights.data[k]"
WINDOW = """const row = y * stride + dy - padding;
      if (row < 0 || row >= H) continue;
      for (let dx = 0; dx < side; dx++) {
        const column = x * stride + dx - padding;"""
SAME = "Math.floor(Math.max(({n} - 1) * stride + side - {N}, 0) / 2)"
MIRROR = "function mirror(k, n) {"
RADIUS = "Math.trunc(4 * sigma + 0.5)"
INSIDE = "if (row < H && column < W) visit(i * columns + j, y * w + x, row * W + column);"
CORNER = "const [row, column] = [tops[i] + y, lefts[j] + x];"
NEAREST = "Math.floor((i * from) / to)"
CENTRES = "Math.max(((i + 0.5) * from) / to - 0.5, 0)"
CORNERS = "(to === 1 ? 0 : (i * (from - 1)) / (to - 1))"
DISTANCE = "Math.hypot(...a.map((x, i) => x - b[i]))"
RGB = "[...data]), weights.conv1"

# (stage, old text, new text, kind)
RESIZE = (
    (PLACE, "Math.fround(x * scale)", "positions without half-pixel centres"),
    (PLACE, "Math.fround((x * (n - 1)) / Math.max(m - 1, 1))", "align_corners in resize"),
    (PLACE, "((x + 0.5) * scale - 0.5)", "fraction in float64 instead of float32"),
    ("clipWeights && (i < 0", "(i < 0", "weights of rows clipped at the border like columns"),
    ("toEven(2048 * f)", "Math.trunc(2048 * f)", "weights truncated instead of rounded"),
    (LEVEL, "(upper + lower) >> 2", "final rounding constant forgotten"),
    (LEVEL, "toEven((row.first * along(row.i) + row.second * along(row.j)) / 2 ** 22)",
     "exact sum rounded half to even instead of OpenCV's shifts"),
    (LEVEL, "Math.floor((row.first * along(row.i) + row.second * along(row.j)) / 2 ** 22)",
     "sum truncated to an integer instead of rounded"),
    ("out.data[(y * W + x) * 3 + c]", "out.data[(y * W + x) * 3 + 2 - c]", "BGR for RGB"),
    ("let f = Math.fround(position - i)", "let f = Math.round(position - i)",
     "nearest pixel instead of bilinear"),
    (LEVEL, """(() => {
      let [sum, n] = [0, 0];
      for (let r = Math.floor((y * h) / H); r < Math.ceil(((y + 1) * h) / H); r++) {
        for (let q = Math.floor((x * w) / W); q < Math.ceil(((x + 1) * w) / W); q++) {
          sum += image.data[(r * w + q) * 3 + c];
          n += 1;
        }
      }
      return Math.round(sum / n);
    })()""", "area averaging (an antialias filter) instead of bilinear"),
    ("j: clip(i + 1), first, second", "j: clip(i + 1), first: second, second: first",
     "the two bilinear weights exchanged"),
    ("const [H, W] = size.data;", "const [W, H] = size.data;", "height and width exchanged"),
)

RESIZE_MASK = (
    (NEAREST, "Math.floor(((i + 0.5) * from) / to)", "nearest from pixel centres"),
    (NEAREST, "Math.min(Math.round((i * from) / to), from - 1)", "position rounded, not floored"),
    (NEAREST, "Math.min(Math.ceil((i * from) / to), from - 1)", "position rounded up"),
    (NEAREST, "Math.round((i * (from - 1)) / Math.max(to - 1, 1))",
     "nearest with aligned corners"),
    (NEAREST, "Math.min(i, from - 1)", "cropped instead of resized"),
    ("enlarge(mask, size.data, nearest)", "enlarge(mask, size.data, centres)",
     "bilinear mask cut to integers"),
)

NORMALISE = (
    ("[0.485, 0.456, 0.406]", "[0.406, 0.456, 0.485]", "means in BGR order"),
    ("[0.229, 0.224, 0.225]", "[0.225, 0.224, 0.229]", "standard deviations in BGR order"),
    ("x / 255 - means[c]", "x / 256 - means[c]", "divided by 256"),
    ("x / 255 - means[c]", "x - means[c]", "not scaled to [0, 1]"),
    (") / deviations[c]", ") / deviations[c] ** 2", "divided by the variance"),
    (") / deviations[c]", ") * deviations[c]", "multiplied by the standard deviation"),
    (") / deviations[c]", ")", "division by the standard deviation forgotten"),
    ("[0.485, 0.456, 0.406]", "[0.5, 0.5, 0.5]", "means of 0.5"),
    ("Math.floor(i / (h * w)) % 3;", "i % 3;", "channels-last memory order"),
    ("return (x / 255 - means[c]) / deviations[c]",
     f"return {HALF}((x / 255 - means[c]) / deviations[c])", "results in float16"),
)

TILE = (
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "mirror(row, H) * W + mirror(column, W)"),
     "reflect padding instead of zeros"),
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "Math.min(row, H - 1) * W + Math.min(column, W - 1)"),
     "edge pixels repeated instead of zeros"),
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "(row % H) * W + (column % W)"), "image wrapped around"),
    ("(_, i) => i * down)", "(_, i) => Math.min(i * down, H - h))",
     "last row of tiles moved back inside the image"),
    ("(_, i) => i * down)", "(_, i) => i * h)", "tile height used as vertical stride"),
    ("(_, j) => j * across)", "(_, j) => j * down)", "vertical stride used for both directions"),
    ("visit(i * columns + j, y", "visit(j * rows + i, y", "tiles numbered column by column"),
    ("visit(i * columns + j, y * w + x,", "visit(i * columns + j, x * h + y,",
     "pixels of a tile in column-major order"),
    ("tiles.data[(k * N * C + n) * h", "tiles.data[(n * rows * columns + k) * h",
     "image axis before the tile axes in memory"),
    (CORNER, CORNER.replace("tops[i] + y", "tops[i] + y - Math.floor((tops.at(-1) + h - H) / 2)")
     + "\n    if (row < 0) return;", "vertical padding on both sides"),
    ("Math.ceil((W - w) / across) + 1", "Math.floor((W - w) / across) + 1",
     "incomplete last column of tiles left out"),
)

BACKBONE = (
    (KERNEL, "((d * C + c) * side + side - 1 - dy) * side + side - 1 - dx",
     "kernels flipped (true convolution)"),
    (KERNEL, "((c * D + d) * side + dy) * side + dx", "weights read as IOHW instead of OIHW"),
    (KERNEL, "((d * C + c) * side + dx) * side + dy", "kernels transposed"),
    (KERNEL, "((d * side + dy) * side + dx) * C + c", "weights read as OHWI instead of OIHW"),
    (WINDOW, WINDOW.replace("dy - padding", "dy - " + SAME.format(n="h", N="H")).replace(
        "dx - padding", "dx - " + SAME.format(n="w", N="W")),
     "SAME padding at stride 2 (less before than after)"),
    (NORM, "[bias, weight, runningMean, runningVariance] = parts",
     "batch norm's weight and bias exchanged"),
    (NORM, "[weight, bias, runningVariance, runningMean] = parts",
     "batch norm's mean and variance exchanged"),
    (NORM, "[runningMean, runningVariance, weight, bias] = parts",
     "batch norm's rows read as mean, variance, weight, bias"),
    (DEVIATION, "const deviation = Math.sqrt(variance)", "batch norm's epsilon missing"),
    (DEVIATION, "const deviation = Math.sqrt(variance) + 1e-5",
     "batch norm's epsilon added after the root"),
    (DEVIATION, "const deviation = Math.sqrt(variance + 1e-3)",
     "batch norm's epsilon 1e-3 (as in Keras)"),
    (DEVIATION, "const deviation = variance + 1e-5", "batch norm divided by the variance"),
    ("let y = relu(batch", "let y = (batch", "ReLU after a block's first convolution missing"),
    ("2, -Infinity, Math.max", "2, 0, (a, b) => a + b / 9", "average instead of max pooling"),
    ("const row = y * stride + dy - 1;", "const row = y * stride + dy;",
     "max pooling without padding at the top"),
    ("w('bn2'))", "w('bn1'))", "first batch norm used twice in a block"),
    ("convolution(images, weights.conv1, 2", """convolution(array(images.shape, parts(images)
    .flatMap((image) => parts(image).reverse().flatMap(({ data }) => [...data]))),
  weights.conv1, 2""", "colour channels in BGR order"),
    (PRODUCT, f"out.data[o] += {HALF}(x.data[i]) * {HALF}(weights.data[k])",
     "convolutions in float16"),
    (PRODUCT, f"out.data[o] += {TF32}(x.data[i]) * {TF32}(weights.data[k])",
     "convolutions in TF32"),
    (PRODUCT, f"out.data[o] += {BF16}(x.data[i]) * {BF16}(weights.data[k])",
     "convolutions in bfloat16"),
)

PADIM_EMBEDDING = (
    ("enlarge(layer, [h, w], nearest)", "enlarge(layer, [h, w], centres)",
     "bilinear instead of nearest"),
    ("enlarge(layer, [h, w], nearest)", "enlarge(layer, [h, w], corners)",
     "bilinear with align_corners instead of nearest"),
    (NEAREST, "Math.floor(((i + 0.5) * from) / to)", "nearest-exact instead of nearest"),
    ("[...channels.data].map((k)", "[...channels.data].sort((a, b) => a - b).map((k)",
     "channels sorted"),
    ("[...channels.data].map((k)", "[...channels.data].map((_, k)",
     "first channels instead of the chosen ones"),
    ("part(image, k))", "part(image, (k + 27) % 28))", "channel numbers off by one"),
    ("concatenate([layer1, ...grown])", "concatenate([grown[1], grown[0], layer1])",
     "layers concatenated in reverse order"),
)

PADIM_PARAMETERS = (
    ("total(products) / (N - 1)", "total(products) / N", "biased covariance"),
    ("covariance + 0.01", "covariance + 0.001", "regularisation of 0.001"),
    ("i === j ? covariance + 0.01 : covariance", "covariance + 0.01",
     "0.01 added to every entry"),
    ("covariance + 0.01", "covariance * 1.01", "regularisation multiplied instead of added"),
    ("(x[i] - a) * (x[j] - b)", "x[i] * x[j]", "second moments without the mean subtracted"),
    ("if (i <= j) factors.push(inverse[j][i])", "if (i >= j) factors.push(inverse[i][j])",
     "lower triangle row by row"),
    ("each([D, D], (i, j) => { if (i <= j) factors", "each([D, D], (j, i) => { if (i <= j) factors",
     "triangle column by column"),
    ("invertLower(cholesky(sigma))", "cholesky(sigma)", "Cholesky factor not inverted"),
    ("i % (h * w) === p)", "i % (h * w) === (p % h) * w + Math.floor(p / h))",
     "positions in column-major order"),
    ("? Math.sqrt(rest) :", "? rest :", "square root on the diagonal of the factor missing"),
    ("const products = own.map((x) => (x[i] - a) * (x[j] - b))",
     f"const products = own.map((x) => {BF16}(x[i] - a) * {BF16}(x[j] - b))",
     "covariance in bfloat16"),
)

PADIM_MAP = (
    ("return Math.hypot(...image)", "return Math.hypot(...image) ** 2", "squared distances"),
    ("(x[row] - centre[row])", "x[row]", "mean not subtracted"),
    ("image[column] +=", "image[row] +=", "product with the factor along the wrong axis"),
    ("const own = i % (h * w);", "const own = (i % w) * h + Math.floor((i % (h * w)) / w);",
     "positions in column-major order"),
    ("return Math.hypot(...image)", "return total([...image].map(Math.abs))",
     "L1 instead of Euclidean length"),
    ("map: blur(enlarge(distances, size.data, centres), 4)",
     "map: enlarge(distances, size.data, centres)", "blur forgotten"),
    ("map: blur(enlarge(distances, size.data, centres), 4)",
     "map: enlarge(blur(distances, 4), size.data, centres)", "blurred before enlarging"),
    ("enlarge(distances, size.data, centres), 4)", "enlarge(distances, size.data, corners), 4)",
     "align_corners"),
    ("enlarge(distances, size.data, centres), 4)", "enlarge(distances, size.data, nearest), 4)",
     "nearest instead of bilinear"),
    ("enlarge(distances, size.data, centres), 4)", "enlarge(distances, size.data, centres), 2)",
     "sigma 2 instead of 4"),
    (RADIUS, "Math.trunc(3 * sigma + 0.5)", "radius of 3 sigma"),
    (MIRROR, MIRROR + " return Math.min(Math.max(k, 0), n - 1);", "edge repeated in the blur"),
    (MIRROR, MIRROR + """
  const whole = 2 * n;
  const at = ((k % whole) + whole) % whole;
  return at < n ? at : whole - 1 - at;
""", "symmetric border (edge repeated once) instead of reflect"),
)

PATCHCORE_EMBEDDING = (
    ("(sum, x) => sum + x / 9", "(sum, x) => sum + x", "sum of neighbours not divided by 9"),
    ("(sum, x) => sum + x / 9", "(sum, x) => Math.max(sum, x)", "max instead of average pooling"),
    ("enlarge(mean3, layer2.shape.slice(2), centres)",
     "enlarge(mean3, layer2.shape.slice(2), nearest)", "nearest instead of bilinear"),
    ("enlarge(mean3, layer2.shape.slice(2), centres)",
     "enlarge(mean3, layer2.shape.slice(2), corners)", "align_corners"),
    ("concatenate([mean2, grown])", "concatenate([grown, mean2])", "layer3 before layer2"),
    ("[mean2, mean3] = [layer2, layer3].map(mean)", "[mean2, mean3] = [layer2, layer3]",
     "average pooling forgotten"),
    ("pool(layer, 1, 0, (sum, x) => sum + x / 9)",
     """(() => {
    const count = pool(array(layer.shape, layer.data.map(() => 1)), 1, 0, (s, x) => s + x).data;
    const sums = pool(layer, 1, 0, (s, x) => s + x);
    return array(sums.shape, sums.data.map((sum, i) => sum / count[i]));
  })()""", "padding not counted in the average (count_include_pad false)"),
    (CENTRES, "((i * from) / to)", "bilinear without half-pixel centres"),
)

PATCHCORE_PARAMETERS = (
    ("const chosen = included ? [first] : [];", "const chosen = [first];",
     "first point always a member"),
    ("const chosen = included ? [first] : [];", "const chosen = [];",
     "first point never put in the coreset"),
    ("chosen.map((i) => part(patches, i))",
     "chosen.sort((a, b) => a - b).map((i) => part(patches, i))", "coreset sorted"),
    ("distances[j] > distances[i] ? j : i", "distances[j] >= distances[i] ? j : i",
     "last instead of first among equally far points"),
    ("distances[j] > distances[i] ? j : i", "distances[j] < distances[i] ? j : i",
     "nearest instead of farthest point chosen"),
    ("Math.min(distances[i], distance(point, points[farthest]))",
     "distance(point, points[farthest])", "distance to the newest member only"),
    ("Math.min(distances[i], distance(point, points[farthest]))",
     "Math.max(distances[i], distance(point, points[farthest]))",
     "maximum instead of minimum of the distances"),
    ("distance(point, points[first]))", "Infinity)", "distances start from infinity"),
    ("rows.map((row) => dot(row, data))", "[...data]", "projection forgotten"),
    (DISTANCE, "1 - dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))", "cosine for Euclid"),
    (DISTANCE, "total(a.map((x, i) => Math.abs(x - b[i])))", "L1 instead of Euclidean distance"),
)

PATCHCORE_MAP = (
    ("const distance = (a, b) => Math.hypot", "const distance = (a, b) => 0.5 * Math.hypot",
     "distances halved"),
    (DISTANCE, "1 - total(a.map((x, i) => x * b[i])) / (Math.hypot(...a) * Math.hypot(...b))",
     "cosine for Euclid"),
    (DISTANCE, "total(a.map((x, i) => (x - b[i]) ** 2))", "squared distances"),
    (DISTANCE, "total(a.map((x, i) => Math.abs(x - b[i])))", "L1 instead of Euclidean distance"),
    (DISTANCE, "Math.sqrt(Math.max(total(a.map((x, i) => "
     f"{TF32}(x) ** 2 + {TF32}(b[i]) ** 2 - 2 * {TF32}(x) * {TF32}(b[i]))), 0))",
     "distances by matrix products in TF32"),
    (DISTANCE, f"Math.hypot(...a.map((x, i) => {HALF}(x) - {HALF}(b[i])))",
     "distances in float16"),
    ("const smallest = Math.min(...all);", "const smallest = Math.max(...all);",
     "farthest instead of nearest member of the bank"),
    ("const smallest = Math.min(...all);", "const smallest = all.sort((i, j) => i - j)[1];",
     "second nearest member of the bank"),
    ("enlarge(distances, size.data, nearest), 4)", "enlarge(distances, size.data, centres), 4)",
     "bilinear instead of nearest"),
    ("(2 * sigma * sigma)", "(sigma * sigma)", "factor 2 missing in the Gaussian's exponent"),
    ("weight / total(weights)", "weight", "blur's weights not normalised"),
    (MIRROR, MIRROR + " return ((k % n) + n) % n;", "periodic border in the blur"),
)

PATCHCORE_SCORE = (
    ("order.slice(0, b)", "order.slice(1, b + 1)", "nearest member left out of the neighbours"),
    ("order.slice(0, b)", "order.slice(0, b + 1)", "one neighbour too many"),
    ("order.slice(0, b)", "order.slice(0, b - 1)", "one neighbour too few"),
    ("distance(x, members[i]))", "distance(members[member], members[i]))",
     "distances from the bank vector instead of the patch"),
    ("(1 - powers[0] / total(powers)) * s", "(powers[0] / total(powers)) * s",
     "softmax not subtracted from 1"),
    ("(1 - powers[0] / total(powers)) * s", "1 - powers[0] / total(powers)",
     "weight not multiplied by the distance"),
    ("Math.exp(d - top)", "Math.exp(top - d)", "softmax of negative distances"),
    ("if (b === 1) return s;", "", "weighted also with one neighbour"),
    ("return (1 - powers[0] / total(powers)) * s;", "return s;", "weighting forgotten"),
    ("fromMember[i] - fromMember[j]", "fromMember[j] - fromMember[i]",
     "farthest instead of nearest neighbours"),
)
