// The page works on typed arrays: images are rows n, runs r, epochs e (places in a run's list), classes k.
const $ = id => document.getElementById(id);
delete document.documentElement.dataset.ready;  // a saved copy has it
const facts = JSON.parse($("facts").textContent);
const { count, classes, runs, views, tiles, hasTruth, hasScores, complete, verdicts: VERDICTS } = facts;
const range = length => Array.from({ length }, (_, i) => i);
const R = runs.length, K = classes.length, RUNS = range(R), CLASSES = range(K);

// ---- Elements. Text is set as text, so that names from files are never read as HTML ----
const SVG = new Set(["svg", "path", "rect", "line", "polyline", "text"]);
function h(tag, attributes, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element[name] = value;
    else if (value != null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter(child => child != null && child !== false));
  return element;
}
const fill = (id, ...children) => $(id).replaceChildren(...children.flat(Infinity).filter(Boolean));
const { format: comma } = new Intl.NumberFormat("en"), percent = value => `${Math.round(100 * value)} %`;
const className = k => h("bdi", { title: classes[k] }, classes[k]);
const label = r => views[state.epoch].labels[r], runClass = r => `r${r % 6}`;
const runName = (r, tag = "b") => h(tag, { class: runClass(r), title: label(r) }, h("bdi", null, label(r)));
const option = (value, text, now) => h("option", { value, selected: String(now) === String(value) }, text);
const button = (key, text, onclick, more) =>
  h("button", { type: "button", "data-key": key, onclick, ...more }, text);

// ---- Data: `arrays` and `base85` in arrays.py write them ----
function decode(script) {  // base 85: five characters from # to w, ! for <, hold four bytes
  const text = script.textContent, bytes = new Uint8Array(text.length / 5 * 4);
  const digit = i => text.charCodeAt(i) === 33 ? 25 : text.charCodeAt(i) - 35;
  for (let i = 0, j = 0; i < text.length; i += 5) {
    let word = 0;
    for (let d = 0; d < 5; d++) word = word * 85 + digit(i + d);
    for (let shift = 24; shift >= 0; shift -= 8) bytes[j++] = word >>> shift;
  }
  return bytes.subarray(0, script.dataset.bytes);
}
function unpack(bytes) {
  let place = 0;
  const take = length => bytes.subarray(place, place += length);
  const gather = (length, Type) => {  // the first byte of every value, then every second byte ...
    const size = Type.BYTES_PER_ELEMENT, planes = take(length * size), joined = new Uint8Array(length * size);
    for (let i = 0; i < length; i++)
      for (let b = 0; b < size; b++) joined[i * size + b] = planes[b * length + i];
    return new Type(joined.buffer);
  };
  const readRun = ({ epochs, exact }) => {
    const guess = epochs.map(() => take(count)), others = epochs.length - 1;
    const rounded = take(count * K * others);  // whole percents, (count, K, others)
    const scores = gather(count * K, facts.digits > 9 ? Float64Array : Float32Array);
    const score = (e, n, k) => e === exact ? scores[n * K + k]
      : rounded[(n * K + k) * others + e - (e > exact)] / 100;
    const [mean, spread] = [0, 1].map(() => gather(count, Uint16Array));
    return { guess, score, mean, spread, learned: take(count), forgotten: take(count) };
  };
  return { truth: take(count), suggested: take(count), margin: gather(count, Float32Array),
    verdicts: views.map(() => take(count)), runs: runs.map(readRun) };
}
const stream = new Blob([decode($("arrays"))]).stream().pipeThrough(new DecompressionStream("deflate"));
const moving = RUNS.filter(r => complete && runs[r].epochs.length > 1);  // those with a past
const data = unpack(new Uint8Array(await new Response(stream).arrayBuffer()));
const { truth } = data;  // 255 if it is unknown
const rules = new CSSStyleSheet();
document.querySelectorAll("script.sheet").forEach((script, i) => {
  const url = URL.createObjectURL(new Blob([decode(script)], { type: "image/webp" }));
  rules.insertRule(`.sheet${i} { background-image: url("${url}") }`);
});
document.adoptedStyleSheets = [rules];
const suspects = [...data.margin.keys()].sort((a, b) => data.margin[a] - data.margin[b]).slice(0, 100);

// ---- What is known of an image in the view that is shown ----
const guessOf = (r, n) => data.runs[r].guess[views[state.epoch].at[r]][n];
const score = (r, n, k) => data.runs[r].score(views[state.epoch].at[r], n, k);
const wrong = (r, n) => hasTruth && guessOf(r, n) !== truth[n];
const truthScore = (r, n) => score(r, n, truth[n]), guessScore = (r, n) => score(r, n, guessOf(r, n));
const idOf = n => facts.ids ? facts.ids[n] : n;
const rowOf = id => facts.ids ? facts.ids.findIndex(other => String(other) === id) : Number(id);
const most = (n, f) => RUNS.reduce((best, r) => Math.max(best, f(r, n)), -Infinity);
const least = (n, f) => RUNS.reduce((worst, r) => Math.min(worst, f(r, n)), Infinity);
let verdict = null;  // of each image in the view that is shown, a place in VERDICTS
const shows = hasTruth ? { wrong: v => v > 0 } : {};  // the chips: which verdicts pass
VERDICTS.slice(R > 1 ? 1 : 2).forEach((name, i) => { shows[name] = v => v === i + 1; });
shows.all = () => true;
// Labels that the reader marks as doubtful, by id. A browser may forbid a local page to store them.
const storage = `doubtful: ${document.title}, ${count}`;
let marks = new Set();
try { marks = new Set(JSON.parse(localStorage.getItem(storage) ?? "[]")); } catch { /* none are kept */ }
function toggleMark(n) {
  if (!marks.delete(String(idOf(n)))) marks.add(String(idOf(n)));
  try { localStorage.setItem(storage, JSON.stringify([...marks])); } catch { /* they are lost at the end */ }
  draw();
}
const wrongScore = (r, n) => wrong(r, n) ? guessScore(r, n) : 0;

// ---- Columns: what can be sorted, queried and grouped. `names` if the values are places in a list ----
const columns = {};
const addColumn = (key, title, value, more) => { columns[key] = { title: () => title, value, ...more }; };
if (complete && R > 1)
  addColumn("change", "largest change of truth score", n => most(n, truthScore) - least(n, truthScore));
if (complete) addColumn("mistake", "most confident wrong guess", n => most(n, wrongScore));
if (hasScores) addColumn("sure", "least sure guess", n => least(n, guessScore), { rising: true });
if (complete) addColumn("margin", "margin of the label", n => data.margin[n], { rising: true });
addColumn("id", "id", idOf, { rising: true });
if (hasTruth) addColumn("truth", "truth", n => truth[n], { names: classes });
addColumn("verdict", "verdict", n => verdict[n], { names: VERDICTS });
addColumn("doubtful", "label marked as doubtful", n => Number(marks.has(String(idOf(n)))));
for (const r of RUNS) {
  const { learned, forgotten, mean, spread } = data.runs[r];
  const moments = [...runs[r].epochs.map(epoch => `since epoch ${epoch}`), "forgotten", "never right"];
  const add = (key, title, value, names) =>
    addColumn(key + r, "", value, { title: () => `${title}, ${label(r)}`, names });
  add("guess", "guess", n => guessOf(r, n), classes);
  if (hasScores) add("score", "score of the guess", n => guessScore(r, n));
  if (complete) add("truth", "truth score", n => truthScore(r, n));
  if (moving.includes(r)) {
    add("mean", "mean truth score of the epochs", n => mean[n] / 65535);
    add("spread", "spread of the truth score", n => spread[n] / 65535);
    add("right", "right", n => learned[n], moments);
    add("forgotten", "times forgotten", n => forgotten[n]);
  }
  for (const k of hasScores ? CLASSES : []) add(`class${k}_`, `score of ${classes[k]}`, n => score(r, n, k));
}
const GROUPS = ["truth", "verdict", ...RUNS.map(r => `guess${r}`)].filter(key => columns[key]);
const TESTS = { "=": (a, b) => a === b, "≠": (a, b) => a !== b, "<": (a, b) => a < b,
  "≤": (a, b) => a <= b, ">": (a, b) => a > b, "≥": (a, b) => a >= b };
// Confusion matrices: of each run, and the difference of each later run to the first.
const MATRICES = [...RUNS.map(r => [r]), ...RUNS.slice(1).map(r => [0, r])];
const matrixName = ([a, b]) => !b ? label(a) : R === 2 ? "difference" : `${label(b)} − ${label(a)}`;

// ---- The state: everything that the address holds ----
const [firstChip] = Object.keys(shows), [firstColumn] = Object.keys(columns);
const DEFAULTS = {
  epoch: facts.start, show: firstChip, truth: "", guess: "", cell: "", box: "", query: "", any: "", group: "",
  sort: firstColumn, down: columns[firstColumn].rising ? "" : "1", page: 0, gallery: "", image: "",
  matrix: R === 1 ? 0 : R, map: moving[0] ?? 0,
};
let state = { ...DEFAULTS };
const conditions = () => JSON.parse(state.query || "[]");  // [column, test, value] each
const queryOf = list => ({ query: list.length ? JSON.stringify(list) : "" });
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS };
  for (const [name, value] of given) {
    if (typeof DEFAULTS[name] === "string") state[name] = value;
    if (typeof DEFAULTS[name] === "number" && /^\d{1,6}$/.test(value)) state[name] = Number(value);
  }
  const isCondition = ([column, test, value]) =>
    Object.hasOwn(columns, column) && Object.hasOwn(TESTS, test) && typeof value === "string";
  try { if (!conditions().every(isCondition)) state.query = ""; } catch { state.query = ""; }
  const numbers = text => text.split(",").map(Number);
  const [matrix, ...pair] = numbers(state.cell), [run, ...sides] = numbers(state.box);
  const valid = {
    epoch: views[state.epoch], truth: state.truth in classes, guess: state.guess in classes,
    show: Object.hasOwn(shows, state.show), sort: Object.hasOwn(columns, state.sort),
    cell: MATRICES[matrix] && pair.length === 2 && pair.every(k => k in classes),
    box: moving.includes(run) && sides.length === 4 && !sides.some(Number.isNaN),
    matrix: MATRICES[state.matrix], map: moving.includes(state.map),
    group: GROUPS.includes(state.group), image: rowOf(state.image) in truth,
  };
  for (const name in valid) if (!valid[name]) state[name] = DEFAULTS[name];
}
function writeAddress(push) {
  const given = new URLSearchParams();
  for (const name in DEFAULTS) if (state[name] !== DEFAULTS[name]) given.set(name, state[name]);
  if (String(given) === location.hash.slice(1)) return;
  history[push ? "pushState" : "replaceState"](null, "", `#${given}`);
}
function change(changes, push = true) {
  const keep = ["page", "image", "matrix", "map"].some(name => name in changes);
  state = { ...state, ...!keep && { page: 0 }, ...changes };
  writeAddress(push);
  draw();
}

// ---- Filter and sort ----
let found = [];  // the images that pass the filters, in order
function conditionTest([key, test, value]) {
  const column = columns[key], wanted = typeof column.value(0) === "number" ? Number(value) : value;
  return value.trim() === "" || Number.isNaN(wanted) ? () => true : n => TESTS[test](column.value(n), wanted);
}
function cellTest() {
  const [matrix, t, g] = state.cell.split(",").map(Number), [a, b] = MATRICES[matrix];
  return n => truth[n] === t && (guessOf(a, n) === g) !== (b !== undefined && guessOf(b, n) === g);
}
function boxTest() {
  const [r, left, right, low, high] = state.box.split(",").map(Number);
  const [mean, spread] = [columns[`mean${r}`].value, columns[`spread${r}`].value];
  return n => spread(n) >= left && spread(n) <= right && mean(n) >= low && mean(n) <= high;
}
function sorted(images) {
  const { value } = columns[state.sort], sign = state.down ? -1 : 1;
  const group = state.group ? columns[state.group].value : () => 0;
  const groups = new Array(count), keys = new Array(count);
  for (const n of images) [groups[n], keys[n]] = [group(n), value(n)];
  const order = (x, y) => x > y ? sign : x < y ? -sign : 0;
  return images.sort((a, b) => groups[a] - groups[b] || order(keys[a], keys[b]) || a - b);
}
function findImages() {
  const tests = [n => shows[state.show](verdict[n])];
  if (state.truth) tests.push(n => truth[n] === Number(state.truth));
  if (state.guess) tests.push(n => RUNS.some(r => guessOf(r, n) === Number(state.guess)));
  if (state.cell) tests.push(cellTest());
  if (state.box) tests.push(boxTest());
  const queried = conditions().map(conditionTest), how = state.any ? "some" : "every";
  if (queried.length) tests.push(n => queried[how](test => test(n)));
  found = sorted(range(count).filter(n => tests.every(test => test(n))));
}

// ---- Pieces that several sections show ----
const side = tiles ? Math.max(tiles.width, tiles.height) : 0;
const rowSide = side <= 48 ? 42 : Math.min(side, 160);  // small pictures are enlarged, larger ones not
function picture(n, wanted = rowSide, more = {}) {
  const across = tiles.columns, place = n % across ** 2, sheet = Math.floor(n / across ** 2);
  const style = `--scale:${wanted / side};--x:${place % across};--y:${Math.floor(place / across)}`;
  return h("span", { class: `picture sheet${sheet}`, style, ...more });
}
const bestClasses = (n, limit, top = k => most(n, r => score(r, n, k))) =>
  [...CLASSES].sort((a, b) => top(b) - top(a)).slice(0, limit);
const about = n => `image ${idOf(n)}${hasTruth ? `, truth ${classes[truth[n]]}` : ""}`;
const open = n => () => change({ image: String(idOf(n)) });
const opener = (n, wanted) => button(`image-${idOf(n)}`, tiles ? picture(n, wanted) : idOf(n), open(n),
  { class: "open", "aria-label": about(n), title: about(n) });
const mark = (kind, name, text) => [h("span", { class: kind, role: "img", "aria-label": name }, text), " "];
const guessCell = (r, n) => [
  hasTruth && (wrong(r, n) ? mark("bad", "wrong", "✗") : mark("ok", "right", "✓")),
  h("b", null, className(guessOf(r, n))),
  hasScores && [" ", h("span", { class: "hint" }, percent(guessScore(r, n)))]];
// A matrix or a group of pictures is one tab stop. Arrow keys go to the nearest button in their direction.
const ACROSS = ["left", "top", "bottom"], DOWN = ["top", "left", "right"], ARROWS = {
  ArrowLeft: [-1, ...ACROSS], ArrowRight: [1, ...ACROSS], ArrowUp: [-1, ...DOWN], ArrowDown: [1, ...DOWN] };
function oneTabStop(group, now) {
  const buttons = [...group.querySelectorAll("button")];
  for (const one of buttons) one.tabIndex = one === (now ?? buttons[0]) ? 0 : -1;
  group.onkeydown = event => {
    const [sign, start, low, high] = ARROWS[event.key] ?? [], here = event.target.getBoundingClientRect();
    const beside = box => box[low] < here[high] - 1 && box[high] > here[low] + 1;
    const distance = box => beside(box) ? sign * (box[start] - here[start]) : 0;
    const ahead = buttons.map(one => [distance(one.getBoundingClientRect()), one]).filter(([d]) => d > 1);
    if (!ahead.length) return;
    event.preventDefault();
    const [, to] = ahead.reduce((a, b) => b[0] < a[0] ? b : a);
    oneTabStop(group, to);
    to.focus();
  };
  return group;
}
const chart = (width, height, kind, name, ...parts) =>
  h("svg", { viewBox: `0 0 ${width} ${height}`, class: kind, role: "img", "aria-label": name }, parts);
const gridLine = (x1, x2, y) => h("line", { class: "grid", x1, x2, y1: y, y2: y });
const line = (r, points, kind = "") => h("polyline", { class: `${runClass(r)} ${kind}`,
  points: points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") });
const table = (kind, heads, rows) => h("table", { class: kind },
  h("thead", null, h("tr", null, heads.map(head => h("th", { scope: "col" }, head)))),
  h("tbody", null, rows.map(([head, ...cells]) => h("tr", null, h("th", { scope: "row" }, head), cells))));
function bars(n) {  // the scores of each class, or of the highest ones: a bar per run, the truth underlined
  const shown = K <= 12 ? CLASSES : [...new Set([truth[n], ...bestClasses(n, 6)])].filter(k => k < K);
  const part = 160 / shown.length, wide = (part - 2) / R;
  const bar = (r, k, i) => `M${i * part + 1 + r * wide} 30v${-29 * score(r, n, k)}h${0.9 * wide}V30`;
  const barsOf = r => h("path", { class: runClass(r), d: shown.map((k, i) => bar(r, k, i)).join("") });
  const name = (k, x) =>
    h("text", { x, y: 39, class: k === truth[n] && "truth" }, classes[k].slice(0, part / 6));
  const words = k => `${classes[k]}: ${RUNS.map(r => percent(score(r, n, k))).join(", ")}`;
  return chart(160, 42, "bars", `scores ${shown.map(words).join("; ")}`,
    RUNS.map(barsOf), shown.map((k, i) => name(k, (i + 0.5) * part)));
}
function sparkline(n) {
  const lines = moving.map(r => line(r, runs[r].epochs.map((_, e, { length }) =>
    [3 + 84 * e / (length - 1), 32 - 30 * data.runs[r].score(e, n, truth[n])])));
  const words = RUNS.map(r => `${label(r)} ${percent(truthScore(r, n))}`).join(", ");
  return chart(90, 34, "spark", `truth score by epoch, now ${words}`, gridLine(0, 90, 33), lines);
}

// ---- The list ----
const clear = { show: "all", truth: "", guess: "", cell: "", box: "", query: "", any: "" };
function sortBy(key) {
  const rising = state.sort === key ? state.down : columns[key].rising || columns[key].names;
  change({ sort: key, down: rising ? "" : "1" });
}
function drawChips() {
  const chip = key => {
    const number = verdict.reduce((sum, v) => sum + shows[key](v), 0);
    const name = key === "wrong" && R > 1 ? "any wrong" : key;
    const by = /fixed|broken/.test(key) ? ` by ${label(1)}` : "";
    return button(`chip-${key}`, [h("b", null, comma(number)), ` ${name}`], () => change({ show: key }),
      { title: name + by, "aria-pressed": String(state.show === key) });
  };
  fill("chips", Object.keys(shows).map(chip));
}
function drawTools() {
  fill("sort", Object.keys(columns).map(key => option(key, columns[key].title(), state.sort)));
  for (const name of ["truth", "guess"])
    fill(name, option("", "any", state[name]), classes.map((text, k) => option(k, text, state[name])));
  fill("group", ["", ...GROUPS].map(key => option(key, columns[key]?.title() ?? "–", state.group)));
  $("down").textContent = state.down ? "↓ high" : "↑ low";
  $("gallery").ariaPressed = String(Boolean(state.gallery));
  $("marks").textContent = marks.size ? `${marks.size} doubtful, CSV` : "";
}
function drawQuery() {
  const titles = Object.entries(columns).map(([key, column]) => [key, column.title()]);
  const row = (condition, i) => {
    const [key, test, value] = condition, { names } = columns[key];
    const edit = (p, text) => change(queryOf(conditions().with(i, condition.with(p, text))));
    const part = (p, tag, more, ...options) => h(tag, { ...more, "data-key": `query-${i}-${p}`,
      "aria-label": `${["column", "comparison", "value"][p]} of condition ${i + 1}`,
      onchange: event => edit(p, event.target.value) }, options);
    return h("div", { class: "tools" },
      part(0, "select", null, titles.map(([other, title]) => option(other, title, key))),
      part(1, "select", null, Object.keys(TESTS).map(other => option(other, other, test))),
      names ? part(2, "select", null, option("", "…", value), names.map((name, k) => option(k, name, value)))
        : part(2, "input", { value, inputmode: "decimal", size: 8 }),
      button(`remove-${i}`, "✕", () => change(queryOf(conditions().toSpliced(i, 1))),
        { "aria-label": `remove condition ${i + 1}` }));
  };
  $("query").hidden = !state.query;
  fill("conditions", conditions().map(row));
  fill("any", option("", "all conditions", state.any), option("1", "any condition", state.any));
}
function drawFilters() {
  const remove = (key, text, changes) =>
    button(`no-${key}`, `${text} ✕`, () => change(changes), { title: "remove this filter" });
  const [matrix, t, g] = state.cell.split(","), [r, left, right, low, high] = state.box.split(",");
  const [a, b] = MATRICES[matrix] ?? [], whose = b ? `only one of ${label(a)}, ${label(b)}` : label(a ?? 0);
  const filters = Object.keys(clear).some(name => state[name] !== clear[name]);
  fill("filters", h("span", { id: "shown" }, h("b", null, comma(found.length)), ` of ${comma(count)} images`),
    state.cell && remove("cell", `truth ${classes[t]}, guess ${classes[g]} by ${whose}`, { cell: "" }),
    state.box && remove("box", `${label(r)}: mean ${low}–${high}, spread ${left}–${right}`, { box: "" }),
    state.query && remove("query", "query", { query: "", any: "" }),
    filters && button("clear", "show all images", () => change(clear)));
}
const listColumns = () => [
  tiles && ["", "image", n => opener(n)],
  ["id", "id", n => tiles ? idOf(n) : opener(n)],
  hasTruth && ["truth", "truth", n => h("b", null, className(truth[n]))],
  ...RUNS.map(r => [`guess${r}`, runName(r), n => guessCell(r, n)]),
  (hasTruth || R > 1) && ["verdict", "verdict", n => VERDICTS[verdict[n]]],
  hasScores && [hasTruth ? "mistake" : "sure", "scores", bars],
  moving.length && [R > 1 ? "change" : "truth0", "truth score by epoch", sparkline],
].filter(Boolean);
function drawList() {
  const size = state.gallery ? 200 : 25, group = columns[state.group];
  const pages = Math.max(1, Math.ceil(found.length / size)), page = Math.min(state.page, pages - 1);
  const rows = found.slice(page * size, (page + 1) * size), list = listColumns();
  const heads = rows.map((n, i) => {  // what stands above a row that starts a group
    const value = group?.value(n);
    if (!group || i && group.value(rows[i - 1]) === value) return null;
    const images = comma(found.filter(other => group.value(other) === value).length);
    return [`${group.title()}: `, h("bdi", null, group.names[value]), `, ${images} images`];
  });
  const title = ([key, text]) => {
    const order = key === state.sort && (state.down ? "descending" : "ascending");
    const sort = key && button(`head-${key}`, [text, order && (state.down ? " ↓" : " ↑")], () => sortBy(key),
      { title: `sort by ${columns[key].title()}` });
    return h("th", { scope: "col", "aria-sort": order }, sort || text);
  };
  const cell = n => ([key, head, show]) => h("td", { "data-name": head.textContent ?? head,
    class: `c-${key.replace(/\d+$/, "") || "image"}` }, show(n));
  const row = (n, i) => [heads[i] && h("tr", { class: "group" }, h("th", { colspan: list.length }, heads[i])),
    h("tr", { "data-id": idOf(n), onclick: open(n) }, list.map(cell(n)))];
  const guess = (r, n) => [" ", h("b", { class: runClass(r) }, className(guessOf(r, n))), wrong(r, n) && "✗"];
  const words = n => h("div", null, hasTruth && [className(truth[n]), " →"], RUNS.map(r => guess(r, n)));
  const card = (n, i) => [heads[i] && h("h3", null, heads[i]),
    h("div", { class: "card", "data-id": idOf(n) }, opener(n, Math.max(64, rowSide)), words(n))];
  fill("list", !rows.length && h("p", null, "No image passes all filters."),
    state.gallery ? oneTabStop(h("div", { class: "gallery" }, rows.map(card)))
      : h("table", { class: "rows", style: `--side:${tiles ? rowSide : 0}px` },
        h("thead", null, h("tr", null, list.map(title))), h("tbody", null, rows.map(row))));
  $("page").textContent = `page ${comma(page + 1)} of ${comma(pages)}`;
  for (const [id, to] of Object.entries({ first: 0, previous: page - 1, next: page + 1, last: pages - 1 })) {
    $(id).disabled = to === page || to < 0 || to >= pages;
    $(id).onclick = () => change({ page: to });
  }
}

// ---- Downloads. A cell that a spreadsheet would take for a formula gets an apostrophe ----
function csvCell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
function download(name, rows) {
  const text = rows.map(row => row.map(csvCell).join() + "\n").join("");
  h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name }).click();
}
const digits = value => facts.digits > 9 ? value : Number(value.toPrecision(facts.digits));
function downloadList() {
  const note = r => views[state.epoch].at[r] === runs[r].exact && facts.digits > 3 ? "" : " (rounded)";
  const each = f => (hasScores ? RUNS : []).flatMap(r => CLASSES.map(k => f(r, k)));
  const names = ["id", "truth", "verdict", ...RUNS.map(r => `guess ${label(r)}`),
    ...each((r, k) => `score_${k} ${label(r)}${note(r)}`)];
  const row = n => [idOf(n), hasTruth ? classes[truth[n]] : "", VERDICTS[verdict[n]],
    ...RUNS.map(r => classes[guessOf(r, n)]), ...each((r, k) => digits(score(r, n, k)))];
  download("predictions.csv", [names, ...found.map(row)]);
}
function downloadMarks() {
  const marked = range(count).filter(n => marks.has(String(idOf(n))));
  download("doubtful.csv", [["id", "truth", "suggested", "margin"], ...marked.map(n =>
    [idOf(n), classes[truth[n]], classes[data.suggested[n]], Number(data.margin[n].toPrecision(6))])]);
}

// ---- Confusion ----
function confusion(r) {
  const matrix = new Int32Array(K * K);
  for (let n = 0; n < count; n++) matrix[truth[n] * K + guessOf(r, n)]++;
  return matrix;
}
function drawConfusion() {
  const all = RUNS.map(confusion), [a, b] = MATRICES[state.matrix], isRun = b === undefined;
  const darkest = Math.max(1, ...all.flatMap(matrix => [...matrix].filter((_, i) => i % (K + 1))));
  const shown = isRun ? all[a] : all[b].map((n, i) => n - all[a][i]);
  const cell = (t, g) => {
    const value = shown[t * K + g], isError = t !== g, key = `${state.matrix},${t},${g}`;
    if (!value) return h("td");
    const text = isRun ? comma(value) : `${value > 0 ? "+" : "−"}${comma(Math.abs(value))}`;
    const name = `truth ${classes[t]}, guess ${classes[g]}: ${text}`;
    const shade = isError ? 10 + 40 * Math.min(1, Math.abs(value) / darkest) : 0;
    const worse = isRun || value > 0 !== isError ? a : b;  // its colour is that of the run with more errors
    return h("td", { class: runClass(worse), style: `--shade:${shade}%` }, button(`cell-${key}`, text,
      () => change({ cell: state.cell === key ? "" : key }), { title: name, "aria-label": name,
        "aria-pressed": String(state.cell === key), class: !isError && "hint" }));
  };
  const matrix = table("matrix", [["truth ↓", h("br"), "guess →"], ...CLASSES.map(className)],
    CLASSES.map(t => [className(t), ...CLASSES.map(g => cell(t, g))]));
  matrix.ariaLabel = `confusion, ${matrixName(MATRICES[state.matrix])}`;
  fill("matrices", MATRICES.map((pair, i) => button(`matrix-${i}`, h("bdi", null, matrixName(pair)),
    () => change({ matrix: i }), { "aria-pressed": String(i === state.matrix) })));
  fill("confusion", oneTabStop(matrix, matrix.querySelector("[aria-pressed=true]")));
  $("minus").textContent = `${isRun ? "" : `${label(b)} minus ${label(a)}. `}Same shade, same count.`;
}

// ---- Wrong guesses, grouped by guess: the runs around one axis of true classes ----
function drawGroups() {
  const members = RUNS.map(() => CLASSES.map(() => CLASSES.map(() => [])));  // run, guess, truth -> images
  for (const r of RUNS)
    for (let n = 0; n < count; n++) if (wrong(r, n)) members[r][guessOf(r, n)][truth[n]].push(n);
  const longest = members.flat(2).reduce((max, images) => Math.max(max, images.length), 1);
  const bar = (r, { length }) => h("div", { class: `bar ${runClass(r)}` },
    length > 0 && [h("i", { style: `width:${80 * length / longest}%` }), h("span", null, comma(length))]);
  const pictures = (r, images) => oneTabStop(h("div", { class: `pictures ${runClass(r)}` },
    h("b", { title: label(r) }, comma(images.length)), images.map(n => opener(n, Math.min(64, rowSide)))));
  const axisLine = (t, g) => h("div", { class: "line", style: `--runs:${R}` },
    h("span", { class: "name" }, className(t)), RUNS.map(r => bar(r, members[r][g][t])));
  const axis = g => CLASSES.filter(t => RUNS.some(r => members[r][g][t].length)).map(t => axisLine(t, g));
  const row = (kind, name, middle, parts) =>
    h("div", { class: `wrongs ${kind}` }, h("b", { class: "name" }, name), h("div", null, middle), parts);
  const shown = CLASSES.filter(g => RUNS.some(r => members[r][g].some(images => images.length)));
  const group = g => row("", className(g), axis(g), RUNS.map(r => pictures(r, members[r][g].flat())));
  const heads = row("heads", "guess", "true class", RUNS.map(r => h("div", null, runName(r))));
  fill("groups", heads, shown.map(group), !shown.length && h("p", null, "No guess is wrong."));
}

// ---- Training dynamics. `map_chart` in charts.py draws the axes of the data map ----
const dataMap = $("map"), { width: mapWidth, height: mapHeight } = $("area").viewBox.baseVal;
function setBox(left, right, low, high) {  // spreads are in 0..0.5, means in 0..1
  const sides = { x: 2 * left * mapWidth, y: (1 - high) * mapHeight, width: 2 * (right - left) * mapWidth };
  for (const [name, value] of Object.entries({ ...sides, height: (high - low) * mapHeight }))
    $("box").setAttribute(name, value);
}
function drawMap() {
  const { map: shown } = state, { mean, spread } = data.runs[shown], paths = ["", ""], seen = new Set();
  for (let n = 0; n < count; n++) {
    const x = Math.round(2 * spread[n] / 65535 * mapWidth), y = Math.round((1 - mean[n] / 65535) * mapHeight);
    const cross = wrong(shown, n), dot = (x * 1000 + y) * 2 + cross;
    if (seen.has(dot)) continue;
    seen.add(dot);
    paths[Number(cross)] += cross ? `M${x - 3} ${y - 3}l6 6m0-6l-6 6` : `M${x - 1} ${y - 1}h2v2h-2z`;
  }
  dataMap.setAttribute("class", runClass(shown));
  ["dots", "crosses"].forEach((id, i) => $(id).setAttribute("d", paths[i]));
  const [boxed, ...sides] = state.box.split(",").map(Number);
  setBox(...state.box && boxed === shown ? sides : [0, 0, 0, 0]);
  fill("mapped", moving.map(r => option(r, label(r), shown)));
}
let dragStart = null;
function pointed({ clientX, clientY }) {  // the spread and the mean where the pointer is
  const { x, y } = new DOMPoint(clientX, clientY).matrixTransform($("area").getScreenCTM().inverse());
  const [spread, mean] = [x / mapWidth, 1 - y / mapHeight].map(share => Math.min(1, Math.max(0, share)));
  return [spread / 2, mean];
}
function dragged(event) {
  const [[x1, y1], [x2, y2]] = [dragStart, pointed(event)], ordered = (a, b) => a < b ? [a, b] : [b, a];
  return [...ordered(x1, x2), ...ordered(y1, y2)].map(value => Number(value.toFixed(3)));
}
dataMap.onpointerdown = event => { dragStart = pointed(event); dataMap.setPointerCapture(event.pointerId); };
dataMap.onpointermove = event => { if (dragStart) setBox(...dragged(event)); };
dataMap.onpointerup = event => {
  if (!dragStart) return;
  const sides = dragged(event);
  dragStart = null;
  change({ box: sides[1] - sides[0] < 0.005 ? "" : [state.map, ...sides].join(), show: "all" });
};

// ---- One image ----
const neighbours = n => found.includes(n) ? found : suspects.includes(n) ? suspects : [n];
function step(by) {
  const n = rowOf(state.image), list = neighbours(n), to = list[list.indexOf(n) + by];
  if (to !== undefined) change({ image: String(idOf(to)) }, false);
}
function curves(r, n) {  // the score of each class by epoch, that of the truth in the colour of the run
  const { epochs } = runs[r], end = 288, y = value => 90 - 84 * value;
  const x = e => 8 + (end - 8) * e / Math.max(1, epochs.length - 1), now = x(views[state.epoch].at[r]);
  const scores = CLASSES.map(k => epochs.map((_, e) => data.runs[r].score(e, n, k)));
  const shown = CLASSES.filter(k => k === truth[n] || Math.max(...scores[k]) >= 0.02);
  const points = k => [...scores[k].map((v, e) => [x(e), y(v)]), [end, y(scores[k].at(-1))]];
  let lowest = -Infinity;  // the names must not overlap
  const name = ([v, k]) => h("text", { x: end + 4, y: lowest = Math.max(lowest + 11, y(v) + 4),
    class: k === truth[n] && "truth" }, classes[k].slice(0, 8));
  const ends = shown.map(k => [scores[k].at(-1), k]).filter(([v]) => v >= 0.08).sort(([a], [b]) => b - a);
  return chart(340, 96, "curves", `score of each class by epoch, ${label(r)}`, gridLine(8, end, 90),
    h("line", { class: "ideal", x1: now, x2: now, y1: 4, y2: 90 }),
    shown.map(k => line(r, points(k), k === truth[n] ? "" : "other")), ends.map(name));
}
const exact = (r, n, k) => h("td", null, digits(score(r, n, k)));
function drawImage() {
  if (state.image === "") { $("image").close(); return; }
  const n = rowOf(state.image), list = neighbours(n), place = list.indexOf(n);
  $("place").textContent = `${comma(place + 1)} of ${comma(list.length)}`;
  $("before").disabled = place === 0;
  $("after").disabled = place === list.length - 1;
  $("doubt").ariaPressed = String(marks.has(String(idOf(n))));
  fill("detail", tiles && picture(n, Math.max(280, side), { role: "img", "aria-label": about(n) }),
    h("div", null, h("h2", { id: "image-title" }, `image ${idOf(n)}`,
      hasTruth && [": truth ", className(truth[n])]),
      complete && h("p", null, `margin of the label ${data.margin[n].toFixed(3)}, best other class `,
        className(data.suggested[n])),
      RUNS.map(r => [h("p", null, runName(r), " ", guessCell(r, n)), hasScores && curves(r, n)])),
    hasScores && table("facts", ["score", ...RUNS.map(r => runName(r, "span"))], bestClasses(n, 10).map(k =>
      [[className(k), k === truth[n] && " (truth)"], ...RUNS.map(r => exact(r, n, k))])));
  if (!$("image").open) $("image").showModal();
}

// ---- Drawing: a part is drawn again if what it shows has changed ----
const drawn = new Map();
function redraw(part, ...shown) {
  const key = JSON.stringify(shown), { activeElement } = document;
  if (drawn.get(part) === key) return;
  drawn.set(part, key);
  part();
  if (activeElement?.dataset.key && !activeElement.isConnected) focusOn(activeElement.dataset.key);
}
const focusOn = key => document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
function draw() {
  const { image, map, matrix, page, gallery, ...filters } = state, { epoch } = state, marked = [...marks];
  redraw(drawView, epoch);
  redraw(drawChips, epoch, state.show);
  redraw(drawTools, epoch, state.sort, state.down, state.truth, state.guess, state.group, gallery, marked);
  redraw(drawQuery, epoch, state.query, state.any);
  redraw(findImages, filters, marked);
  redraw(drawFilters, filters, found.length);
  redraw(drawList, filters, page, gallery, marked);
  if (hasTruth) redraw(drawConfusion, epoch, matrix, state.cell);
  if (hasTruth) redraw(drawGroups, epoch);
  if (moving.length) redraw(drawMap, epoch, map, state.box);
  redraw(drawImage, image, filters, marked);
}
function drawView() {
  for (const section of document.querySelectorAll("section[data-view]"))
    section.hidden = Number(section.dataset.view) !== state.epoch;
  verdict = data.verdicts[state.epoch];
  const sample = r => h("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, line(r, [[0, 4], [26, 4]]));
  fill("runs", RUNS.map(r => h("span", { class: `run ${runClass(r)}` }, sample(r), runName(r))),
    h("span", { class: "hint" }, facts.about));
  $("epoch").value = state.epoch;
  $("at").value = views[state.epoch].epoch;
}

// ---- Controls ----
for (const name of ["truth", "guess", "group", "any"])
  $(name).onchange = event => change({ [name]: event.target.value });
$("mapped").onchange = event => change({ map: Number(event.target.value) });
$("sort").onchange = event => sortBy(event.target.value);
$("epoch").oninput = event => { state.epoch = Number(event.target.value); draw(); };
$("epoch").onchange = event => change({ epoch: Number(event.target.value) });
const clicks = {
  down: () => change({ down: state.down ? "" : "1" }),
  add: () => change(queryOf([...conditions(), ["id", "≥", ""]])),
  gallery: () => change({ gallery: state.gallery ? "" : "1" }),
  csv: downloadList, marks: downloadMarks, close: () => $("image").close(),
  "by-margin": () => change({ ...clear, sort: "margin", down: "" }),
  before: () => step(-1), after: () => step(1), doubt: () => toggleMark(rowOf(state.image)),
  answers: ({ target: { dataset } }) => { if (dataset.view) change({ epoch: Number(dataset.view) }); },
  learned: ({ target: { dataset: { run, learned } } }) =>
    run && change({ ...clear, ...queryOf([[`right${run}`, "=", learned]]) }),
};
for (const [id, act] of Object.entries(clicks)) $(id).onclick = act;
$("image").onclose = () => {
  const key = `image-${state.image}`;
  if (state.image !== "") change({ image: "" });
  if (document.activeElement.dataset.key !== key) focusOn(key);  // it was opened as another image
};
const keys = { ArrowLeft: "before", ArrowRight: "after", l: "doubt", L: "doubt" };
$("image").onkeydown = event => $(keys[event.key])?.click();
window.onhashchange = () => { readAddress(); draw(); };
for (const place of document.querySelectorAll("[data-row]"))
  place.replaceChildren(opener(Number(place.dataset.row), 48));
oneTabStop($("suspects"));
readAddress();
draw();
document.documentElement.dataset.ready = "yes";
