"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const state = {category: 0, arch: null, setup: null, verdict: "all", defect: "", fade: 25, truth: true,
  order: [], card: null, at: 0};
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

// ---------------------------------------------------------------------------- light, dark
const root = document.documentElement;
const setTheme = (dark) => {
  root.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
};
setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
$("theme").onclick = () => setTheme(root.dataset.theme !== "dark");

// -------------------------------------------------------------------------- summary table
const table = $("results");
let sorted = {column: -1, down: false};
const drawRows = () => {
  const rows = data.summary.rows.slice();
  if (sorted.column >= 0) {
    const key = (row) => row[sorted.column][1];
    const sign = sorted.down ? -1 : 1;
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0);
    });
  }
  table.tBodies[0].replaceChildren(...rows.map((row) => {
    const line = make("tr");
    row.forEach(([text], k) => line.append(make("td", data.summary.text[k] ? "text" : "", text)));
    return line;
  }));
  [...table.tHead.rows[0].cells].forEach((cell, k) => cell.setAttribute("aria-sort",
    k !== sorted.column ? "none" : sorted.down ? "descending" : "ascending"));
};
{
  const head = make("tr");
  data.summary.headers.forEach((text, k) => {
    const cell = make("th", data.summary.text[k] ? "text" : "");
    const button = make("button", "", text);
    button.type = "button";
    button.onclick = () => {
      const down = sorted.column === k ? !sorted.down : !data.summary.text[k];
      sorted = {column: k, down};
      drawRows();
    };
    cell.scope = "col";
    cell.append(button);
    head.append(cell);
  });
  table.tHead.append(head);
  drawRows();
}

// ------------------------------------------------------------------------------- pictures
// A heat map is a grey JPEG, 128 the threshold, coloured here. Normal regions are transparent, so
// that the image stays visible under the heat map.
const colors = data.colors;  // 256 x [r, g, b]
const greys = new Map();     // recently decoded heat maps, so that stepping back costs nothing
const GREYS = 400;
const decode = (source) => {
  if (greys.has(source)) return greys.get(source);
  const promise = new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", {willReadFrequently: true});
      context.drawImage(image, 0, 0);
      done(context.getImageData(0, 0, canvas.width, canvas.height));
    };
    image.onerror = () => fail(new Error("a heat map cannot be decoded"));
    image.src = "data:image/jpeg;base64," + source;
  });
  greys.set(source, promise);
  if (greys.size > GREYS) greys.delete(greys.keys().next().value);
  return promise;
};
const paint = (canvas, grey, color, alpha) => {
  canvas.width = grey.width;
  canvas.height = grey.height;
  const context = canvas.getContext("2d");
  const out = context.createImageData(grey.width, grey.height);
  for (let k = 0; k < out.data.length; k += 4) {
    const [r, g, b] = color(grey.data[k]);
    out.data[k] = r; out.data[k + 1] = g; out.data[k + 2] = b;
    out.data[k + 3] = alpha(grey.data[k]);
  }
  context.putImageData(out, 0, 0);
};
const WHITE = [255, 255, 255], BLACK = [0, 0, 0];
const category = () => data.categories[state.category];
const cells = () => category() ? category().cells[state.arch] || {} : {};
const cell = () => cells()[state.setup];

const stage = (image) => {
  const box = make("span", "stage");
  box.style.aspectRatio = image.w + " / " + image.h;
  box.style.setProperty("--ratio", String(image.w / image.h));
  box.append(make("img"), make("canvas", "heat"), make("canvas", "mask"));
  box.firstChild.alt = "";
  if (image.outline) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 " + image.mw + " " + image.mh);
    svg.setAttribute("preserveAspectRatio", "none");
    for (let k = 0; k < 2; k++) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", image.outline);
      svg.append(path);
    }
    box.append(svg);
  }
  return box;
};
const fill = async (box, image, map) => {
  const [picture, heat, mask] = box.children;
  if (!picture.src) picture.src = "data:image/jpeg;base64," + image.jpeg;
  if (!map || box.map === map) return;
  box.map = map;
  const grey = await decode(map);
  if (box.map !== map) return;  // another setup was chosen meanwhile
  paint(heat, grey, (v) => colors[v], (v) => Math.min(225, 2 * v));
  paint(mask, grey, (v) => (v >= 128 ? WHITE : BLACK), () => 255);
};
const empty = (box) => {
  box.map = null;
  box.firstChild.removeAttribute("src");
  box.children[1].width = box.children[2].width = 0;
};
const verdictOf = (label, score, one) => {
  const called = score >= one.threshold;
  if (label) return called ? ["ok", "found"] : ["fn", "false negative"];
  return called ? ["fp", "false positive"] : ["ok", "passed"];
};
// How wrong: above 0 an error, the distance from the threshold in units of the scores' range.
const wrongness = (image, k, one) => {
  const range = (one.high - one.low) || 1;
  const margin = (one.scores[k] - one.threshold) / range;
  return image.label ? -margin : margin;
};

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = entry.target;
    card.seen = entry.isIntersecting;
    if (card.seen) show(card); else empty(card.box);
  }
}, {rootMargin: "300px"});
const show = (card) => {
  const one = cell();
  fill(card.box, card.image, one && one.maps[card.k]);
};

let cards = [];
const buildCards = () => {
  cards.forEach((card) => watcher.unobserve(card));
  const one = category();
  cards = one ? one.images.map((image, k) => {
    const card = make("button", "card");
    card.type = "button";
    card.k = k;
    card.image = image;
    card.box = stage(image);
    const caption = make("span", "caption");
    card.verdict = make("span", "verdict");
    card.score = make("span", "soft");
    caption.append(card.verdict, make("span", "", image.defect), card.score,
      make("span", "soft", image.name));
    card.append(card.box, caption);
    card.onclick = () => openDetail(state.order.indexOf(card));
    watcher.observe(card);
    return card;
  }) : [];
  const kinds = one ? [...new Set(one.images.map((image) => image.defect))].sort() : [];
  $("defect").replaceChildren(option("", "any"), ...kinds.map((kind) => option(kind, kind)));
  if (!kinds.includes(state.defect)) state.defect = "";
  $("defect").value = state.defect;
};
const option = (value, text) => {
  const node = make("option", "", text);
  node.value = value;
  return node;
};
const keep = {
  all: () => true,
  errors: (kind) => kind !== "ok",
  fn: (kind) => kind === "fn",
  fp: (kind) => kind === "fp",
  bad: (kind, image) => image.label === 1,
  good: (kind, image) => image.label === 0,
};
const drawGallery = () => {
  const one = cell();
  const found = [];
  const counts = {ok: 0, fn: 0, fp: 0};
  for (const card of cards) {
    if (!one) continue;
    const [kind, text] = verdictOf(card.image.label, one.scores[card.k], one);
    counts[kind]++;
    card.className = "card " + kind;
    card.verdict.className = "verdict " + kind;
    card.verdict.textContent = text;
    card.score.textContent = "score " + one.scores[card.k].toPrecision(4) + ", threshold " +
      one.threshold.toPrecision(4);
    card.wrong = wrongness(card.image, card.k, one);
    if (keep[state.verdict](kind, card.image) &&
        (state.defect === "" || card.image.defect === state.defect)) found.push(card);
  }
  found.sort((a, b) => b.wrong - a.wrong || a.k - b.k);
  state.order = found;
  $("gallery").replaceChildren(...found);
  found.filter((card) => card.seen).forEach(show);
  const left = category() && category().omitted;
  $("count").textContent = !category() ? "No cell has pictures: run with --report." :
    !one ? "This setup was not run here." :
    "Images shown: " + found.length + " of " + cards.length + ". False negatives: " + counts.fn +
    ", false positives: " + counts.fp + (left ? "; " + left + " further images, with smaller errors, " +
    "are left out to keep this file small" : "") + ".";
};
const drawCharts = () => {
  const one = category();
  $("curves-of").textContent = one ? one.title + ", " + (data.archs[state.arch] || "") : "";
  const html = one ? one.charts[state.arch] || [] : [];
  $("charts").innerHTML = html.join("");
};

// ------------------------------------------------------------------------------- choosing
const setupNames = () => data.setups.filter((name) => name in cells());
const drawSetups = () => {
  $("setups").replaceChildren(...setupNames().map((name) => {
    const button = make("button", "", name);
    button.type = "button";
    button.setAttribute("aria-pressed", String(name === state.setup));
    button.onclick = () => chooseSetup(name);
    return button;
  }));
};
const chooseSetup = (name) => {
  state.setup = name;
  drawSetups();
  drawGallery();
  if (state.card) drawDetail();
};
const stepSetup = (by) => {
  const names = setupNames();
  if (!names.length) return;
  chooseSetup(names[(names.indexOf(state.setup) + by + names.length) % names.length]);
};
const chooseArch = (name) => {
  state.arch = name;
  const names = setupNames();
  if (!names.includes(state.setup)) state.setup = names[names.length - 1];
  $("arch").value = name;
  chooseSetup(state.setup);
  drawCharts();
};
const chooseCategory = (k) => {
  state.card = null;  // the picture that may be open is of another category
  state.category = k;
  $("category").value = String(k);
  const archs = category() ? Object.keys(data.archs).filter((name) => name in category().cells) : [];
  $("arch").replaceChildren(...archs.map((name) => option(name, data.archs[name])));
  buildCards();
  chooseArch(archs.includes(state.arch) ? state.arch : archs[0]);
};
const setFade = (value) => {
  state.fade = Math.min(100, Math.max(0, value));
  // 0 the image, 25 the heat map over it, 50 the heat map alone, 100 the mask
  const up = Math.min(1, state.fade / 25);
  root.style.setProperty("--heat", String(state.fade <= 50 ? up : (100 - state.fade) / 50));
  root.style.setProperty("--photo", String(Math.min(1, Math.max(0, 2 - state.fade / 25))));
  root.style.setProperty("--mask", String(Math.max(0, state.fade - 50) / 50));
  $("fade").value = $("detail-fade").value = String(state.fade);
};
const setTruth = (on) => {
  state.truth = on;
  document.body.classList.toggle("no-truth", !on);
  $("truth").setAttribute("aria-pressed", String(on));
};
const setVerdict = (value) => {
  state.verdict = $("verdict").value = value;
  drawGallery();
};
data.categories.forEach((one, k) => $("category").append(option(String(k), one.title)));
$("category").onchange = () => chooseCategory(Number($("category").value));
$("arch").onchange = () => chooseArch($("arch").value);
$("verdict").onchange = () => setVerdict($("verdict").value);
$("defect").onchange = () => { state.defect = $("defect").value; drawGallery(); };
$("fade").oninput = () => setFade(Number($("fade").value));
$("detail-fade").oninput = () => setFade(Number($("detail-fade").value));
$("truth").onclick = () => setTruth(!state.truth);

// ------------------------------------------------------------------------ one picture, large
const drawDetail = () => {
  const card = state.card;
  const at = state.order.indexOf(card);  // -1: with this setup the filters leave it out
  if (at >= 0) state.at = at;
  const image = card.image;
  const one = cell();
  $("detail-name").textContent = image.name;
  const [, text] = verdictOf(image.label, one.scores[card.k], one);
  $("detail-facts").textContent = state.setup + ": " + text + ", score " +
    one.scores[card.k].toPrecision(4) + " at a threshold of " + one.threshold.toPrecision(4) + ". " +
    (image.label ? "Defect: " + image.defect : "Normal image") + ", " + image.w + " x " + image.h +
    " px" + (at < 0 ? "" : ", picture " + (at + 1) + " of " + state.order.length) + ".";
  let large = $("large").firstChild;
  if (!large || large.image !== image) {
    large = stage(image);
    large.image = image;
    $("large").replaceChildren(large);
    $("strip").replaceChildren(...setupNames().map((name) => {
      const button = make("button");
      button.type = "button";
      button.name = name;
      button.box = stage(image);
      const caption = make("span", "caption");
      const [kind, words] = verdictOf(image.label, cells()[name].scores[card.k], cells()[name]);
      caption.append(make("span", "", name), make("span", "verdict " + kind, words));
      button.append(button.box, caption);
      button.onclick = () => chooseSetup(name);
      fill(button.box, image, cells()[name].maps[card.k]);
      return button;
    }));
  }
  fill(large, image, one.maps[card.k]);
  [...$("strip").children].forEach((button) =>
    button.setAttribute("aria-pressed", String(button.name === state.setup)));
};
const openDetail = (at) => {
  if (!state.order.length) return;
  state.card = state.order[(at + state.order.length) % state.order.length];
  if (!$("detail").open) $("detail").showModal();
  drawDetail();
};
$("detail").addEventListener("close", () => {
  const card = state.card;
  state.card = null;
  $("large").replaceChildren();
  $("strip").replaceChildren();
  if (card) card.focus();
});
$("close").onclick = () => $("detail").close();
const step = (by) => {
  const at = state.order.indexOf(state.card);
  openDetail(at >= 0 ? at + by : state.at - (by < 0));
};
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("detail").onclick = (event) => { if (event.target === $("detail")) $("detail").close(); };

// ------------------------------------------------------------------------------- keyboard
const keys = {
  "[": () => stepSetup(-1), "]": () => stepSetup(1),
  "1": () => setFade(0), "2": () => setFade(50), "3": () => setFade(100),
  ",": () => setFade(state.fade - 10), ".": () => setFade(state.fade + 10),
  o: () => setTruth(!state.truth),
  n: () => setVerdict("fn"), p: () => setVerdict("fp"), e: () => setVerdict("all"),
  t: () => $("theme").onclick(),
};
const detailKeys = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  ArrowUp: () => stepSetup(-1), ArrowDown: () => stepSetup(1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target.tagName;
  if (at === "SELECT" || (at === "INPUT" && event.key.startsWith("Arrow"))) return;
  const open = state.card !== null;
  if (open && "npe".includes(event.key)) return;
  const action = (open && detailKeys[event.key]) || keys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

setFade(25);
setTruth(true);
chooseCategory(0);
root.dataset.ready = "yes";
})();
