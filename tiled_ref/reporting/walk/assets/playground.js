// Merges the tile maps of one image again, smooths the seams and applies a threshold whenever a
// control changes. The functions of the first part are named after those of the program and do
// the same arithmetic in the same order, in float32: Math.fround rounds a result to float32, as
// storing it in a Float32Array does.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("play-data").textContent);
const [H, W] = data.image, [h, w] = data.tile;

// ---------------------------------------------------------------- arithmetic

function bytesOf(text) {
  return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
}

// The tile maps, float32 (rows, cols, h, w): low + level size * level, levels in two bytes each.
function decodeMaps() {
  const bytes = bytesOf(data.maps), maps = new Float32Array(bytes.length / 2);
  for (let k = 0; k < maps.length; k++) {
    maps[k] = data.low + data.level * (bytes[2 * k] + 256 * bytes[2 * k + 1]);
  }
  return maps;
}

// The true defects, one byte for each pixel, or null where they are unknown.
function decodeTruth() {
  if (data.truth === null) return null;
  const bytes = bytesOf(data.truth);
  return Uint8Array.from({length: H * W}, (_, k) => (bytes[k >> 3] >> (7 - (k & 7))) & 1);
}

// An axis cut wherever a tile starts or ends: {start, stop, tiles that cover the piece}.
function pieces(image, tile, stride, n) {
  const tiles = Array.from({length: n}, (_, k) => k);
  const ends = tiles.flatMap((k) => [k * stride, Math.min(k * stride + tile, image)]);
  const borders = [...new Set([0, image, ...ends])].sort((a, b) => a - b);
  return borders.slice(1).map((stop, b) => {
    const start = borders[b];
    const covering = tiles.filter((k) => k * stride <= start && start < k * stride + tile);
    return {start, stop, tiles: covering};
  });
}

// The float32 sum of the first n parts, pairwise: neighbours, then sums of neighbours. Overwrites
// the parts.
function pairwiseSum(parts, n) {
  while (n > 1) {
    const half = n >> 1;
    for (let k = 0; k < half; k++) parts[k] = parts[2 * k] + parts[2 * k + 1];
    if (n & 1) parts[half] = parts[n - 1];
    n = half + (n & 1);
  }
  return parts[0];
}

// Merged tile maps, the mean where tiles overlap: float32 (H, W).
function untileAverage(maps, grid) {
  const [down, across] = grid.stride, merged = new Float32Array(H * W);
  const parts = new Float32Array(grid.rows * grid.cols);
  for (const rows of pieces(H, h, down, grid.rows)) {
    for (const cols of pieces(W, w, across, grid.cols)) {
      const covering = rows.tiles.flatMap((i) => cols.tiles.map((j) => ({
        first: (i * data.cols + j) * grid.step * h * w, top: i * down, left: j * across,
      })));
      for (let y = rows.start; y < rows.stop; y++) {
        for (let x = cols.start; x < cols.stop; x++) {
          for (let k = 0; k < covering.length; k++) {
            const {first, top, left} = covering[k];
            parts[k] = maps[first + (y - top) * w + x - left];
          }
          merged[y * W + x] = pairwiseSum(parts, covering.length) / covering.length;
        }
      }
    }
  }
  return merged;
}

// The tile borders inside the image along one axis, ascending.
function borders(image, tile, stride, n) {
  return pieces(image, tile, stride, n).slice(1).map((piece) => piece.start);
}

// Which rows, or columns, lie in the seam band.
function band(image, tile, stride, n, width) {
  const reach = Math.trunc(width * tile), inside = new Uint8Array(image);
  for (const border of borders(image, tile, stride, n)) {
    inside.fill(1, Math.max(0, border - reach), border + reach);
  }
  return inside;
}

// Half of a normalised Gaussian: the weights of the centre and of distances 1 .. radius.
function gaussianTaps(sigma) {
  const radius = Math.trunc(4 * sigma + 0.5), weights = [];
  for (let k = 0; k <= radius; k++) weights.push(Math.exp(-(k * k) / (2 * sigma * sigma)));
  let total = 0;
  for (let k = radius; k > 0; k--) total += 2 * weights[k];
  total += weights[0];
  return Float32Array.from(weights, (weight) => weight / total);
}

// The pixel for each of -radius .. n - 1 + radius, mirrored at both edges.
function reflected(n, radius) {
  const period = Math.max(1, 2 * (n - 1));
  return Int32Array.from({length: n + 2 * radius}, (_, k) => {
    const index = (((k - radius) % period) + period) % period;
    return Math.min(index, period - index, n - 1);
  });
}

// The map blurred down, then across, where its row or column lies in the band: float32 (H, W).
function seamBlur(map, taps, rows, cols) {
  const {fround} = Math, radius = taps.length - 1;
  const atRow = reflected(H, radius), atCol = reflected(W, radius);
  const down = new Float32Array(H * W), blurred = map.slice();
  for (let y = 0; y < H; y++) {
    for (let x = 0; x < W; x++) down[y * W + x] = taps[0] * map[y * W + x];
    for (let k = 1; k <= radius; k++) {
      const above = atRow[radius + y - k] * W, below = atRow[radius + y + k] * W, tap = taps[k];
      for (let x = 0; x < W; x++) {
        down[y * W + x] += fround(tap * fround(map[above + x] + map[below + x]));
      }
    }
    for (let x = 0; x < W; x++) {
      if (!rows[y] && !cols[x]) continue;
      let total = fround(taps[0] * down[y * W + x]);
      for (let k = 1; k <= radius; k++) {
        const pair = down[y * W + atCol[radius + x - k]] + down[y * W + atCol[radius + x + k]];
        total = fround(total + fround(taps[k] * fround(pair)));
      }
      blurred[y * W + x] = total;
    }
  }
  return blurred;
}

// The image score by a rule: "mean", "max" or "top:K", the mean of the K largest.
function imageScores(scores, rule) {
  let chosen = scores;
  if (rule === "max") return Math.max(...scores);
  if (rule.startsWith("top:")) {
    chosen = [...scores].sort((a, b) => b - a).slice(0, Number(rule.slice(4)));
  }
  return Math.fround(chosen.reduce((sum, score) => sum + score, 0) / chosen.length);
}

// A cache of the last value per name, computed again when its key changes.
const kept = {};
function once(name, key, make) {
  if (kept[name]?.key !== key) kept[name] = {key, value: make()};
  return kept[name].value;
}

// Everything that the state of the controls determines.
function compute(state) {
  const grid = data.grids.find((one) => one.step === state.step);
  const [down, across] = grid.stride, scores = [];
  for (let i = 0; i < grid.rows; i++) {
    for (let j = 0; j < grid.cols; j++) {
      scores.push(data.scores[(i * data.cols + j) * grid.step]);
    }
  }
  const merged = once("merged", state.step, () => untileAverage(maps, grid));
  const rows = band(H, h, down, grid.rows, state.width);
  const cols = band(W, w, across, grid.cols, state.width);
  const smooth = once("smooth", `${state.step} ${state.width} ${state.sigma}`,
    () => seamBlur(merged, gaussianTaps(state.sigma), rows, cols));
  const mask = new Uint8Array(H * W);
  for (let k = 0; k < mask.length; k++) mask[k] = smooth[k] >= state.threshold;
  return {grid, scores, score: imageScores(scores, state.rule), merged, rows, cols, smooth, mask};
}

// ---------------------------------------------------------------- the page

const maps = decodeMaps(), truth = decodeTruth();
const low = maps.reduce((a, b) => Math.min(a, b)), high = maps.reduce((a, b) => Math.max(a, b));
const part = (id) => document.getElementById(`play-${id}`);
const number = (value) => Number(value.toPrecision(4)).toString();
const state = {};
let result = null; // of the state shown

// A seam is text such as "column 256"; its profile runs across it, at a place along it.
function seams(grid) {
  const across = borders(W, w, grid.stride[1], grid.cols).map((at) => `column ${at}`);
  return [...across, ...borders(H, h, grid.stride[0], grid.rows).map((at) => `row ${at}`)];
}

function parse(seam) {
  const [axis, at] = seam.split(" ");
  const isColumn = axis === "column";
  const along = isColumn ? H : W, across = isColumn ? W : H;
  return {isColumn, at: Number(at), along, across,
          index: (at, place) => (isColumn ? place * W + at : at * W + place)};
}

// The seam, and the place on it, where the merged map jumps most; places inside the band of a
// crossing seam count only where all are.
function largestJump({merged, grid, rows, cols}) {
  let best = {jump: -1};
  for (const seam of seams(grid)) {
    const {at, along, index, isColumn} = parse(seam);
    const crossing = isColumn ? rows : cols, every = crossing.every((inside) => inside);
    for (let place = 0; place < along; place++) {
      if (crossing[place] && !every) continue;
      const jump = Math.abs(merged[index(at, place)] - merged[index(at - 1, place)]);
      if (jump > best.jump) best = {jump, seam, place};
    }
  }
  return {seam: best.seam, place: best.place};
}

function count(mask) {
  return mask.reduce((sum, inside) => sum + inside, 0);
}

// Pixels in a mask, or within a given distance of it along rows, columns or both.
function grown(mask, pixels) {
  let out = mask;
  for (const step of [1, W]) {
    const from = out;
    out = from.slice();
    for (let k = 0; k < from.length; k++) {
      if (!from[k]) continue;
      const at = step === 1 ? k % W : Math.trunc(k / W), n = step === 1 ? W : H;
      for (let d = -Math.min(pixels, at); d <= Math.min(pixels, n - 1 - at); d++) {
        out[k + d * step] = 1;
      }
    }
  }
  return out;
}

// A colour as the four bytes of a pixel, from the lowest on.
function rgba([red, green, blue], alpha = 255) {
  return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

// Draw the outline of a mask, with a black rim, into pixels, one number each.
function outline(pixels, mask, colour) {
  const wide = Math.max(1, Math.round(Math.min(H, W) / 300));
  const line = grown(mask, wide), rim = grown(line, 1);
  for (let k = 0; k < mask.length; k++) {
    if (rim[k] && !mask[k]) pixels[k] = rgba(line[k] ? colour : [0, 0, 0]);
  }
}

const NARROW = matchMedia("(max-width:700px)"); // a phone, as in the style sheet
const WHITE = [255, 255, 255], DEFECT = [255, 92, 225];
const TABLE = Uint32Array.from({length: 256}, (_, k) => {
  const at = k / 255 * (data.colours.length - 1);
  const node = Math.min(Math.trunc(at), data.colours.length - 2);
  const from = data.colours[node], to = data.colours[node + 1];
  return rgba(from.map((value, c) => Math.round(value + (at - node) * (to[c] - value))));
});

function drawMap() {
  const context = part("map").getContext("2d"), image = context.createImageData(W, H);
  const pixels = new Uint32Array(image.data.buffer), {smooth} = result;
  for (let k = 0; k < pixels.length; k++) {
    const level = (smooth[k] - low) / (high - low || 1);
    pixels[k] = TABLE[Math.round(255 * Math.min(1, Math.max(0, level)))];
  }
  if (truth) outline(pixels, truth, DEFECT);
  context.putImageData(image, 0, 0);
  context.fillStyle = "rgb(255 255 255 / 70%)"; // the edges of the band
  result.cols.forEach((inside, x) => {
    if (inside !== (result.cols[x + 1] ?? inside)) context.fillRect(x, 0, 1, H);
  });
  result.rows.forEach((inside, y) => {
    if (inside !== (result.rows[y + 1] ?? inside)) context.fillRect(0, y, W, 1);
  });
  const {isColumn, from, to} = profileSpan(), thick = Math.max(1, Math.round(Math.min(H, W) / 150));
  for (const [colour, more] of [["#000", 1], ["#fff", 0]]) {
    const along = [from - more, to - from + 2 * more];
    const across = [state.place - thick / 2 - more, thick + 2 * more];
    const [[x, width], [y, height]] = isColumn ? [along, across] : [across, along];
    context.fillStyle = colour;
    context.fillRect(x, y, width, height);
  }
}

function drawMask() {
  const context = part("mask").getContext("2d"), layer = new OffscreenCanvas(W, H);
  const above = layer.getContext("2d"), image = above.createImageData(W, H);
  const pixels = new Uint32Array(image.data.buffer);
  for (let k = 0; k < pixels.length; k++) pixels[k] = result.mask[k] && rgba(WHITE, 110);
  outline(pixels, result.mask, WHITE);
  if (truth) outline(pixels, truth, DEFECT);
  above.putImageData(image, 0, 0);
  context.drawImage(photo, 0, 0, W, H);
  context.drawImage(layer, 0, 0);
}

// The pixels of the profile: an eighth of the image on each side of the seam.
function profileSpan() {
  const seam = parse(state.seam), reach = Math.max(4, Math.round(seam.across / 8));
  return {...seam, from: Math.max(0, seam.at - reach), to: Math.min(seam.across, seam.at + reach)};
}

function profile() {
  const {from, to, index} = profileSpan(), before = [], after = [];
  for (let at = from; at < to; at++) {
    before.push(result.merged[index(at, state.place)]);
    after.push(result.smooth[index(at, state.place)]);
  }
  return {from, before, after};
}

function element(name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  node.textContent = text;
  return node;
}

function drawProfile() {
  const {isColumn, at, from, to} = profileSpan(), {before, after} = profile();
  const width = 400, height = NARROW.matches ? 190 : 400, left = 78, right = width - 8;
  const bottom = height - 26;
  const least = Math.min(...before, ...after), most = Math.max(...before, ...after);
  const x = (k) => left + (k - from) / (to - from) * (right - left);
  const y = (v) => bottom - (v - least) / (most - least || 1) * (bottom - 14);
  const svg = element("svg", {viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `The map across the seam at ${state.seam}`});
  const {rows, cols} = result, crossing = (isColumn ? rows : cols)[state.place];
  const inside = (k) => crossing || (isColumn ? cols : rows)[k];
  for (let k = from; k < to; k++) {
    if (!inside(k)) continue;
    let stop = k;
    while (stop < to && inside(stop)) stop++;
    svg.append(element("rect", {x: x(k), y: 14, width: x(stop) - x(k), height: bottom - 14}));
    k = stop;
  }
  for (const value of [least, (least + most) / 2, most]) {
    svg.append(element("line", {x1: left, x2: right, y1: y(value), y2: y(value)}));
    const place = {x: left - 6, y: y(value) + 5, "text-anchor": "end"};
    svg.append(element("text", place, number(value)));
  }
  svg.append(element("line", {class: "play-seam", x1: x(at), x2: x(at), y1: 14, y2: bottom}));
  if (least <= state.threshold && state.threshold <= most) {
    const level = y(state.threshold);
    const ends = {x1: left, x2: right, y1: level, y2: level};
    svg.append(element("line", {class: "play-level", ...ends}));
    svg.append(element("text", {x: right, y: level - 4, "text-anchor": "end"}, "threshold"));
  }
  for (const [k, anchor] of [[from, "start"], [at, "middle"], [to, "end"]]) {
    svg.append(element("text", {x: x(k), y: height - 6, "text-anchor": anchor},
      k === at ? `${isColumn ? "column" : "row"} ${k}` : k));
  }
  for (const [name, values] of [["before", before], ["after", after]]) {
    const points = values.map((v, k) => `${x(from + k + 0.5).toFixed(1)},${y(v).toFixed(1)}`);
    svg.append(element("path", {class: `play-${name}`, d: "M" + points.join("L")}));
  }
  part("profile").replaceChildren(svg);
}

function ruleInWords(rule) {
  if (!rule.startsWith("top:")) return rule;
  const n = Math.min(Number(rule.slice(4)), result.scores.length);
  return n > 1 ? `mean of the ${n} highest` : "highest";
}

// The results in words.
function sentences() {
  const {scores, score, mask, rows, cols, merged, smooth} = result, marked = count(mask);
  const share = (n) => `${(100 * n / (H * W)).toFixed(2)} %`;
  let banded = 0, change = 0, both = 0;
  for (let k = 0; k < mask.length; k++) {
    banded += rows[Math.trunc(k / W)] || cols[k % W];
    change = Math.max(change, Math.abs(smooth[k] - merged[k]));
    both += truth && mask[k] && truth[k];
  }
  const said = [
    `Image score ${number(score)}, the ${ruleInWords(state.rule)} of ${scores.length} tile scores.`,
    `The seam band holds ${share(banded)} of the pixels; smoothing changes a value by at most ` +
      `${number(change)}.`,
    `${share(marked)} of the pixels (${marked.toLocaleString("en")}) reach the threshold ` +
      `${number(state.threshold)}.`,
  ];
  if (truth) {
    const defective = count(truth), either = marked + defective - both;
    said.push(!defective ? "No pixel is defective." :
      `${defective.toLocaleString("en")} px are defective, ${both.toLocaleString("en")} of them in ` +
      `the mask (intersection over union ${(both / either).toFixed(2)}).`);
  }
  return said.join(" ");
}

function showControls() {
  const {grid} = result, {along, isColumn} = parse(state.seam);
  part("stride").value = state.step;
  part("overlap").checked = overlaps(grid);
  part("rule").value = state.rule;
  part("seam").replaceChildren(...seams(grid).map((seam) => new Option(seam, seam)));
  part("seam").value = state.seam;
  part("place").max = along - 1;
  const texts = {
    width: `${number(100 * state.width)} %, ${Math.trunc(state.width * h)} px`,
    sigma: `${number(state.sigma)} px`,
    threshold: number(state.threshold),
    place: `${isColumn ? "row" : "column"} ${state.place}`,
  };
  for (const [id, text] of Object.entries(texts)) {
    part(id).value = state[id];
    part(id).ariaValueText = text;
    part(`${id}-text`).value = text;
  }
}

function overlaps(grid) {
  return grid.stride[0] < h || grid.stride[1] < w;
}

// Change the state and show its results.
function set(changes) {
  Object.assign(state, changes);
  result = compute(state);
  if (!seams(result.grid).includes(state.seam)) Object.assign(state, largestJump(result));
  state.place = Math.min(state.place, parse(state.seam).along - 1);
  showControls();
  drawMap();
  drawMask();
  drawProfile();
  const words = sentences(), scale = (state.threshold - low) / (high - low || 1);
  part("numbers").textContent = words;
  part("map").ariaLabel = `The smoothed map, values from ${number(low)} to ${number(high)}`;
  part("mask").ariaLabel = `The image with the mask. ${words}`;
  part("mark").style.left = `${100 * Math.min(1, Math.max(0, scale))}%`;
}

function setUp() {
  const least = Math.min(low, data.start.threshold), most = Math.max(high, data.start.threshold);
  const ranges = {width: [0, Math.max(0.5, data.start.width), 0.01],
                  sigma: [Math.min(0.5, data.start.sigma), Math.max(8, data.start.sigma), 0.1],
                  threshold: [least, most, (most - least) / 500 || 1], place: [0, H - 1, 1]};
  for (const [id, [min, max, step]] of Object.entries(ranges)) {
    Object.assign(part(id), {min, max, step});
    part(id).oninput = (event) => set({[id]: Number(event.target.value)});
  }
  data.grids.forEach(({step, stride}) => part("stride").add(
    new Option(stride[0] === stride[1] ? `${stride[0]} px` : `${stride.join(" x ")} px`, step)));
  data.rules.forEach((rule) => part("rule").add(new Option(rule, rule)));
  part("stride").onchange = (event) => set({step: Number(event.target.value)});
  part("rule").onchange = (event) => set({rule: event.target.value});
  part("seam").onchange = (event) => set({seam: event.target.value});
  const apart = data.grids.find((grid) => !overlaps(grid)), over = data.grids.find(overlaps);
  part("overlap").disabled = !apart || !over;
  part("stride").disabled = data.grids.length === 1;
  part("overlap").onchange = (event) => set({step: (event.target.checked ? over : apart).step});
  part("reset").onclick = () => set({...data.start, seam: ""});
  for (const id of ["map", "mask"]) Object.assign(part(id), {width: W, height: H});
  const stops = data.colours.map((colour) => `rgb(${colour.join(" ")})`).join(",");
  part("mark").parentNode.style.background = `linear-gradient(to right,${stops})`;
  part("low").textContent = number(low);
  part("high").textContent = number(high);
  part("truth").hidden = truth === null;
  NARROW.onchange = drawProfile;
  set({...data.start, seam: "", place: 0});
}

const photo = new Image();
window.playground = {state, compute, set, profile, ready: false};
photo.onload = () => {
  setUp();
  window.playground.ready = true;
};
photo.src = data.photo;
})();
