// The page works on typed arrays: images are rows n, runs r, epochs e (places in a run's list), classes k.
const $ = id => document.getElementById(id);
delete document.documentElement.dataset.ready;  // a saved copy has it
const facts = JSON.parse($("facts").textContent);
const { count, classes, runs, views, tiles } = facts;
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
const comma = value => value.toLocaleString("en");
const percent = value => `${Math.round(100 * value)} %`;
const className = k => h("bdi", { title: classes[k] }, classes[k]);
const label = r => views[state.epoch].labels[r];
const runClass = r => `r${r % 6}`;
const runName = (r, tag = "b") => h(tag, { class: runClass(r), title: label(r) }, h("bdi", null, label(r)));
const option = (value, text, chosen) => h("option", { value, selected: String(chosen) === String(value) }, text);
const button = (key, text, onclick, more) =>
  h("button", { type: "button", "data-key": key, onclick, ...more }, text);
const select = (key, name, options, onchange) =>
  h("label", null, `${name} `, h("select", { "data-key": key, onchange }, options));

// ---- Data: `arrays` and `binary` in render.py write them ----
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
  const read = { truth: take(count), suggested: take(count), margin: gather(count, Float32Array), runs: [] };
  for (const { epochs, exact } of runs) {
    const guess = epochs.map(() => take(count)), others = epochs.length - 1;
    const rounded = take(count * K * others);  // whole percents, (count, K, others)
    const scores = gather(count * K, facts.digits > 9 ? Float64Array : Float32Array);
    const score = (e, n, k) => e === exact ? scores[n * K + k]
      : rounded[(n * K + k) * others + e - (e > exact)] / 100;
    const [mean, spread] = [0, 1].map(() => gather(count, Uint16Array));
    read.runs.push({ guess, score, mean, spread, ...learning(guess, read.truth) });
  }
  return read;
}

function learning(guess, truth) {
  // learned: the place of the first epoch of those that are right to the end, then "forgotten", "never right"
  const last = guess.length, learned = new Uint8Array(count), forgotten = new Uint8Array(count);
  for (let n = 0; n < count; n++) {
    let everRight = false;
    for (let e = 0; e < last; e++) {
      const right = guess[e][n] === truth[n];
      if (!right) learned[n] = e + 1;
      if (!right && e && guess[e - 1][n] === truth[n]) forgotten[n]++;
      everRight ||= right;
    }
    if (learned[n] === last && !everRight) learned[n]++;
  }
  return { learned, forgotten };
}

const stream = new Blob([decode($("arrays"))]).stream().pipeThrough(new DecompressionStream("deflate"));
const moving = RUNS.filter(r => runs[r].epochs.length > 1);  // those with a past
const data = unpack(new Uint8Array(await new Response(stream).arrayBuffer()));
const { truth } = data;
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
const wrong = (r, n) => guessOf(r, n) !== truth[n];
const truthScore = (r, n) => score(r, n, truth[n]);
const guessScore = (r, n) => score(r, n, guessOf(r, n));
const idOf = n => facts.ids ? facts.ids[n] : n;
const rowOf = id => facts.ids ? facts.ids.findIndex(other => String(other) === id) : Number(id);
const most = (n, f) => Math.max(...RUNS.map(r => f(r, n)));
const least = (n, f) => Math.min(...RUNS.map(r => f(r, n)));
const VERDICTS = ["all right", ...R === 1 ? ["wrong"] : R === 2 ? ["fixed", "broken"] : ["disagree"],
  ...R > 1 ? ["all wrong, same guess", "all wrong, different"] : []];
const SAME = VERDICTS.indexOf("all wrong, same guess");
function findVerdict(n) {
  const wrongs = RUNS.filter(r => wrong(r, n)).length;
  if (wrongs === 0 || R === 1) return wrongs;
  if (wrongs < R) return R === 2 && !wrong(0, n) ? 2 : 1;
  return RUNS.every(r => guessOf(r, n) === guessOf(0, n)) ? SAME : SAME + 1;
}
let verdict = new Uint8Array(count);
const CHIPS = [["wrong", R > 1 ? "any wrong" : "wrong"], ...VERDICTS.slice(R > 1 ? 1 : 2).map(name => [name, name]),
  ["all", "all"]];
const shows = { wrong: v => v > 0, all: () => true };
for (const [v, name] of VERDICTS.entries()) shows[name] ??= other => other === v;

// Labels that the reader marks as doubtful, by id. A browser may forbid a local page to store them.
const storage = `doubtful: ${document.title}, ${count}`;
let marks = new Set();
try { marks = new Set(JSON.parse(localStorage.getItem(storage) ?? "[]")); } catch { /* none are kept */ }
function toggleMark(n) {
  if (!marks.delete(String(idOf(n)))) marks.add(String(idOf(n)));
  try { localStorage.setItem(storage, JSON.stringify([...marks])); } catch { /* they last until it is closed */ }
  draw();
}

// ---- Columns: what can be sorted, queried and grouped. `names` if the values are places in a list ----
const columns = {
  id: { title: () => "id", value: idOf, rising: true },
  truth: { title: () => "truth", value: n => truth[n], names: classes },
  verdict: { title: () => "verdict", value: n => verdict[n], names: VERDICTS },
  change: { title: () => "largest change of truth score", value: n => most(n, truthScore) - least(n, truthScore) },
  mistake: { title: () => "most confident wrong guess", value: n => most(n, wrongScore) },
  sure: { title: () => "least sure guess", value: n => least(n, guessScore), rising: true },
  margin: { title: () => "margin of the label", value: n => data.margin[n], rising: true },
  doubtful: { title: () => "label marked as doubtful", value: n => Number(marks.has(String(idOf(n)))) },
};
const wrongScore = (r, n) => wrong(r, n) ? guessScore(r, n) : 0;
for (const r of RUNS) {
  const { learned, forgotten, mean, spread } = data.runs[r];
  const moments = [...runs[r].epochs.map(epoch => `since epoch ${epoch}`), "forgotten", "never right"];
  const add = (key, title, value, names) =>
    columns[`${key}${r}`] = { title: () => `${title}, ${label(r)}`, value, names };
  add("guess", "guess", n => guessOf(r, n), classes);
  add("score", "score of the guess", n => guessScore(r, n));
  add("truth", "truth score", n => truthScore(r, n));
  if (runs[r].epochs.length > 1) {
    add("mean", "mean truth score of the epochs", n => mean[n] / 65535);
    add("spread", "spread of the truth score", n => spread[n] / 65535);
    add("right", "right", n => learned[n], moments);
    add("forgotten", "times forgotten", n => forgotten[n]);
  }
  for (const k of CLASSES) add(`class${k}_`, `score of ${classes[k]}`, n => score(r, n, k));
}
const GROUPS = ["truth", "verdict", ...RUNS.map(r => `guess${r}`)];
const TESTS = {
  "=": (a, b) => a === b, "≠": (a, b) => a !== b, "<": (a, b) => a < b,
  "≤": (a, b) => a <= b, ">": (a, b) => a > b, "≥": (a, b) => a >= b,
};
// Confusion matrices: of each run, and the difference of each later run to the first.
const MATRICES = [...RUNS.map(r => [r]), ...RUNS.slice(1).map(r => [0, r])];
const matrixName = ([a, b]) => b === undefined ? label(a) : R === 2 ? "difference" : `${label(b)} − ${label(a)}`;

// ---- The state: everything that the address holds ----
const DEFAULTS = {
  epoch: facts.start, show: "wrong", truth: "", guess: "", cell: "", box: "", query: [], any: "", group: "",
  sort: R > 1 ? "change" : "mistake", down: "1", page: 0, size: 25, gallery: "", matrix: R === 1 ? 0 : R, map: 0,
  image: "",
};
let state = { ...DEFAULTS };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...DEFAULTS };
  for (const [name, value] of given) {
    if (typeof DEFAULTS[name] === "string") state[name] = value;
    if (typeof DEFAULTS[name] === "number" && /^\d{1,6}$/.test(value)) state[name] = Number(value);
  }
  const isCondition = c => Array.isArray(c) && columns[c[0]] && TESTS[c[1]] && typeof c[2] === "string";
  try { state.query = JSON.parse(given.get("query") ?? "[]").filter(isCondition); } catch { state.query = []; }
  const numbers = text => text.split(",").map(Number);
  const [matrix, ...pair] = numbers(state.cell), [run, ...sides] = numbers(state.box);
  const valid = {
    epoch: views[state.epoch], show: CHIPS.some(([key]) => key === state.show), sort: columns[state.sort],
    truth: classes[state.truth], guess: classes[state.guess], group: GROUPS.includes(state.group),
    cell: MATRICES[matrix] && pair.length === 2 && pair.every(k => k in classes),
    box: moving.includes(run) && sides.length === 4 && !sides.some(Number.isNaN),
    size: [25, 50, 100, 500].includes(state.size), matrix: MATRICES[state.matrix], map: runs[state.map],
    image: rowOf(state.image) >= 0 && rowOf(state.image) < count,
  };
  for (const name in valid) if (valid[name] === undefined || valid[name] === false) state[name] = DEFAULTS[name];
}

function writeAddress(push) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const now = name === "query" ? JSON.stringify(state.query) : String(state[name]);
    if (now !== (name === "query" ? "[]" : String(value))) given.set(name, now);
  }
  if (String(given) !== location.hash.slice(1))
    history[push ? "pushState" : "replaceState"](null, "", `#${given}`);
}

const KEEP_PAGE = ["page", "image", "matrix", "map"];
function change(changes, push = true) {
  const page = Object.keys(changes).every(name => KEEP_PAGE.includes(name)) ? state.page : 0;
  state = { ...state, page, ...changes };
  writeAddress(push);
  draw();
}

// ---- Filter and sort ----
function conditionTest([key, test, value]) {
  const column = columns[key], compare = TESTS[test];
  const wanted = typeof column.value(0) === "number" ? Number(value) : value;
  return value.trim() === "" || Number.isNaN(wanted) ? () => true : n => compare(column.value(n), wanted);
}

function cellTest() {
  const [matrix, t, g] = state.cell.split(",").map(Number), [a, b] = MATRICES[matrix];
  if (b === undefined) return n => truth[n] === t && guessOf(a, n) === g;
  return n => truth[n] === t && (guessOf(a, n) === g) !== (guessOf(b, n) === g);
}

function boxTest() {
  const [r, left, right, low, high] = state.box.split(",").map(Number), { mean, spread } = data.runs[r];
  const inside = (value, from, to) => value >= from * 65535 && value <= to * 65535;
  return n => inside(spread[n], left, right) && inside(mean[n], low, high);
}

function sorted(found) {
  const { value } = columns[state.sort], sign = state.down ? -1 : 1;
  const group = state.group ? columns[state.group].value : () => 0;
  const groups = new Array(count), keys = new Array(count);
  for (const n of found) [groups[n], keys[n]] = [group(n), value(n)];
  const order = (x, y) => x > y ? sign : x < y ? -sign : 0;
  return found.sort((a, b) => groups[a] - groups[b] || order(keys[a], keys[b]) || a - b);
}

function filtered() {
  const tests = [n => shows[state.show](verdict[n])];
  if (state.truth) tests.push(n => truth[n] === Number(state.truth));
  if (state.guess) tests.push(n => RUNS.some(r => guessOf(r, n) === Number(state.guess)));
  if (state.cell) tests.push(cellTest());
  if (state.box) tests.push(boxTest());
  const conditions = state.query.map(conditionTest);
  if (conditions.length) tests.push(n => state.any ? conditions.some(c => c(n)) : conditions.every(c => c(n)));
  return sorted(range(count).filter(n => tests.every(test => test(n))));
}

// ---- Pieces that several sections show ----
const side = tiles ? Math.max(tiles.width, tiles.height) : 0;
const rowSide = side <= 48 ? 42 : Math.min(side, 160);  // small pictures are enlarged, larger ones keep their size
function picture(n, wanted = rowSide, more = {}) {
  const scale = wanted / side, { columns: across } = tiles, [w, h_] = [tiles.width * scale, tiles.height * scale];
  const place = n % across ** 2, x = place % across * w, y = Math.floor(place / across) * h_;
  const style = `width:${w}px;height:${h_}px;background-size:${across * w}px auto;background-position:${-x}px ${-y}px`;
  return h("span", { class: `picture sheet${Math.floor(n / across ** 2)}`, style, ...more });
}
const about = n => `image ${idOf(n)}, truth ${classes[truth[n]]}`;
const opener = (n, wanted, ...more) =>
  button(`image-${idOf(n)}`, [tiles ? picture(n, wanted) : idOf(n), more],
    () => change({ image: String(idOf(n)) }), { class: "open", "aria-label": about(n), title: about(n) });
const mark = (r, n) => wrong(r, n) ? h("span", { class: "bad" }, "✗ wrong") : h("span", { class: "ok" }, "✓");

function line(r, points, more) {
  return h("polyline", { class: runClass(r), points: points.map(p => p.map(x => x.toFixed(1)).join()).join(" "), ...more });
}

// The scores of each class, or of the highest ones: a bar per run, the truth underlined.
function bars(n) {
  const top = k => most(n, (r, n) => score(r, n, k)) + (k === truth[n] ? 2 : 0);
  const shown = K <= 12 ? CLASSES : [...CLASSES].sort((a, b) => top(b) - top(a)).slice(0, 6);
  const step = 160 / shown.length, wide = (step - 2) / R;
  const parts = shown.flatMap((k, i) => [
    ...RUNS.map(r => {
      const height = 29 * score(r, n, k);
      return h("rect", { class: runClass(r), x: i * step + 1 + r * wide, y: 30 - height, width: wide * 0.9, height });
    }),
    h("text", { x: (i + 0.5) * step, y: 39, class: k === truth[n] ? "truth" : null },
      classes[k].slice(0, Math.max(1, Math.floor(step / 6)))),
  ]);
  const text = shown.map(k => `${classes[k]}: ${RUNS.map(r => percent(score(r, n, k))).join(", ")}`).join("; ");
  return h("svg", { viewBox: "0 0 160 42", class: "bars", role: "img", "aria-label": `scores ${text}` }, parts);
}

function sparkline(n) {
  const lines = moving.map(r => {
    const { epochs } = runs[r], x = e => 3 + e * 84 / (epochs.length - 1);
    return line(r, epochs.map((_, e) => [x(e), 32 - 30 * data.runs[r].score(e, n, truth[n])]));
  });
  const text = RUNS.map(r => `${label(r)} ${percent(truthScore(r, n))}`).join(", ");
  return h("svg", { viewBox: "0 0 90 34", class: "spark", role: "img", "aria-label": `truth score by epoch, now ${text}` },
    h("line", { class: "grid", x1: 0, x2: 90, y1: 33, y2: 33 }), lines);
}

// ---- The list ----
let found = [];  // the rows that pass the filters, in order
const sortBy = key => {
  const down = state.sort === key ? state.down ? "" : "1" : columns[key].rising || columns[key].names ? "" : "1";
  change({ sort: key, down });
};
const clear = { show: "all", truth: "", guess: "", cell: "", box: "", query: [], any: "" };

function drawChips() {
  const counts = CHIPS.map(([key]) => verdict.reduce((sum, v) => sum + shows[key](v), 0));
  const names = { fixed: `fixed by ${label(R - 1)}`, broken: `broken by ${label(R - 1)}`,
    "all wrong, same guess": `${R === 2 ? "both" : "all"} wrong the same`,
    "all wrong, different": `${R === 2 ? "both" : "all"} wrong otherwise` };
  fill("chips", CHIPS.map(([key, text], i) => button(`chip-${key}`,
    [h("b", null, comma(counts[i])), " ", h("bdi", null, names[key] ?? text)],
    () => change({ show: key }), { "aria-pressed": String(state.show === key), title: names[key] ?? text })));
}

function drawTools() {
  const keys = Object.keys(columns), presets = ["change", "mistake", "sure", "margin", "id"].slice(R > 1 ? 0 : 1);
  const others = keys.filter(key => !presets.includes(key));
  const sorts = list => list.map(key => option(key, columns[key].title(), state.sort));
  const names = name => [option("", "any", state[name]), CLASSES.map(k => option(k, classes[k], state[name]))];
  const groups = ["", ...GROUPS].map(key => option(key, key ? columns[key].title() : "nothing", state.group));
  const pick = name => event => change({ [name]: event.target.value });
  fill("tools",
    select("sort", "sort", [sorts(presets), h("optgroup", { label: "any column" }, sorts(others))],
      event => sortBy(event.target.value)),
    button("down", state.down ? "↓" : "↑", () => change({ down: state.down ? "" : "1" }),
      { "aria-label": state.down ? "largest first" : "smallest first" }),
    select("truth", "truth", names("truth"), pick("truth")),
    select("guess", "guess", names("guess"), pick("guess")),
    select("group", "group", groups, pick("group")),
    button("query", "query", () => change({ query: [...state.query, ["id", "≥", ""]] })),
    button("gallery", state.gallery ? "table" : "gallery", () => change({ gallery: state.gallery ? "" : "1" })),
    button("csv", "CSV", downloadList, { title: "download these images with all scores" }),
    marks.size && button("marks", `${marks.size} doubtful, CSV`, downloadMarks));
}

function drawQuery() {
  const edit = (i, part, value) =>
    change({ query: state.query.map((c, j) => i === j ? c.map((old, p) => p === part ? value : old) : c) });
  const keys = Object.keys(columns).map(key => [key, columns[key].title()]);
  const line = ([key, test, value], i) => {
    const { names } = columns[key], name = `condition ${i + 1}: `;
    const input = names
      ? h("select", { onchange: event => edit(i, 2, event.target.value) },
        option("", "…", value), names.map((text, k) => option(k, text, value)))
      : h("input", { value, inputmode: "decimal", size: 8, onchange: event => edit(i, 2, event.target.value) });
    const parts = [
      h("select", { onchange: event => edit(i, 0, event.target.value) }, keys.map(([k, t]) => option(k, t, key))),
      h("select", { onchange: event => edit(i, 1, event.target.value) },
        Object.keys(TESTS).map(t => option(t, t, test))), input];
    parts.forEach((part, p) => {
      part.setAttribute("aria-label", name + ["column", "comparison", "value"][p]);
      part.dataset.key = `query-${i}-${p}`;
    });
    const remove = () => change({ query: state.query.filter((_, j) => j !== i) });
    return h("div", { class: "tools" }, parts, button(`remove-${i}`, "✕", remove, { "aria-label": `remove ${name}` }));
  };
  $("query").hidden = !state.query.length;
  fill("query", state.query.map(line), state.query.length > 1 && select("any", "images that pass",
    [option("", "all conditions", state.any), option("1", "any condition", state.any)],
    event => change({ any: event.target.value })));
}

function drawFilters() {
  const remove = (key, text, changes) =>
    button(`no-${key}`, [h("bdi", null, text), " ✕"], () => change(changes), { title: "remove this filter" });
  const [matrix, t, g] = state.cell.split(",").map(Number), [r, left, right, low, high] = state.box.split(",");
  const pair = state.cell && MATRICES[matrix];
  const whose = pair && (pair.length > 1 ? `in only one of ${label(pair[0])}, ${label(pair[1])}` : `by ${label(pair[0])}`);
  const any = state.show !== "all" || state.truth || state.guess || state.cell || state.box || state.query.length;
  fill("filters", h("span", { id: "shown" }, h("b", null, comma(found.length)), ` of ${comma(count)} images`),
    state.cell && remove("cell", `truth ${classes[t]}, guess ${classes[g]} ${whose}`, { cell: "" }),
    state.box && remove("box", `${label(r)}: mean ${low} to ${high}, spread ${left} to ${right}`, { box: "" }),
    state.query.length > 0 && remove("query", `${state.query.length} conditions`, { query: [], any: "" }),
    any && button("clear", "show all images", () => change(clear)));
}

function groupHead(n, columns_) {
  const { value, names } = columns[state.group], same = found.filter(m => value(m) === value(n)).length;
  const text = [`${columns[state.group].title()}: `, h("bdi", null, names[value(n)]), `, ${comma(same)} images`];
  return columns_ ? h("tr", { class: "group" }, h("th", { colspan: columns_, scope: "rowgroup" }, text))
    : h("h3", null, text);
}

const guessCell = (r, n) => [mark(r, n), " ", h("b", null, className(guessOf(r, n))), " ",
  h("span", { class: "hint" }, percent(guessScore(r, n)))];

function drawList() {
  const size = state.gallery ? Math.max(100, state.size) : state.size;
  const pages = Math.max(1, Math.ceil(found.length / size)), page = Math.min(state.page, pages - 1);
  const rows = found.slice(page * size, (page + 1) * size);
  const starts = n => state.group && (n === rows[0]
    || columns[state.group].value(n) !== columns[state.group].value(rows[rows.indexOf(n) - 1]));
  const heads = [tiles && ["", "image"], ["id", "id"], ["truth", "truth"],
    ...RUNS.map(r => [`guess${r}`, runName(r)]), ["verdict", "verdict"], ["mistake", "scores"],
    moving.length && [R > 1 ? "change" : "truth0", "truth score by epoch"]].filter(Boolean);
  const cells = n => [
    tiles && opener(n), tiles ? idOf(n) : opener(n), h("b", null, className(truth[n])),
    ...RUNS.map(r => guessCell(r, n)), h("span", { class: "tag" }, VERDICTS[verdict[n]]), bars(n),
    moving.length && sparkline(n)].filter(cell => cell !== null && cell !== 0);
  const title = ([key, text]) => h("th", { scope: "col", role: "columnheader",
    "aria-sort": key === state.sort ? state.down ? "descending" : "ascending" : null },
  key ? button(`head-${key}`, [text, key === state.sort && (state.down ? " ↓" : " ↑")], () => sortBy(key),
    { title: `sort by ${columns[key].title()}` }) : text);
  const names = heads.map(([, text]) => text instanceof Element ? text.textContent : text);
  const row = n => h("tr", { role: "row", "data-id": idOf(n) }, cells(n).map((cell, i) =>
    h("td", { role: "cell", "data-name": names[i], class: `c-${heads[i][0].replace(/\d+$/, "") || "image"}` }, cell)));
  const card = n => h("div", { class: "card" }, opener(n, Math.max(64, rowSide)),
    h("div", null, className(truth[n]), " → ", RUNS.map(r => [h("b", { class: runClass(r) }, className(guessOf(r, n))), " "])));
  const withHeads = draw => rows.map(n => [starts(n) && groupHead(n, draw === row && heads.length), draw(n)]);
  fill("list", !rows.length ? h("p", null, "No image passes all filters.")
    : state.gallery ? h("div", { class: "gallery" }, withHeads(card))
      : h("div", { class: "scroll" }, h("table", { class: "rows", role: "table" },
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map(title))),
        h("tbody", { role: "rowgroup" }, withHeads(row)))));
  const go = (key, text, name, to) => button(key, text, () => change({ page: to }),
    { "aria-label": name, disabled: to < 0 || to >= pages });
  fill("pages", go("first", "«", "first page", page ? 0 : -1), go("previous", "‹", "previous page", page - 1),
    `page ${page + 1} of ${comma(pages)}`, go("next", "›", "next page", page + 1),
    go("last", "»", "last page", page < pages - 1 ? pages - 1 : pages),
    select("size", "rows", [25, 50, 100, 500].map(n => option(n, n, state.size)),
      event => change({ size: Number(event.target.value) })));
}

// ---- Downloads. A cell that a spreadsheet would take for a formula gets an apostrophe ----
function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r']/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
function download(name, rows) {
  const text = rows.map(row => row.map(csvCell).join(",") + "\n").join("");
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
function downloadList() {
  const { at } = views[state.epoch], exactly = r => at[r] === runs[r].exact;
  const digits = value => facts.digits > 9 ? value : Number(value.toPrecision(facts.digits));
  const note = r => label(r) + (exactly(r) && facts.digits > 3 ? "" : " (rounded)");
  const heads = ["id", "truth", "verdict", ...RUNS.map(r => `guess ${label(r)}`),
    ...RUNS.flatMap(r => CLASSES.map(k => `score_${k} ${note(r)}`))];
  const row = n => [idOf(n), classes[truth[n]], VERDICTS[verdict[n]], ...RUNS.map(r => classes[guessOf(r, n)]),
    ...RUNS.flatMap(r => CLASSES.map(k => digits(score(r, n, k))))];
  download("predictions.csv", [heads, ...found.map(row)]);
}
function downloadMarks() {
  const rows = range(count).filter(n => marks.has(String(idOf(n))));
  download("doubtful.csv", [["id", "truth", "suggested", "margin"], ...rows.map(n =>
    [idOf(n), classes[truth[n]], classes[data.suggested[n]], Number(data.margin[n].toPrecision(6))])]);
}

// ---- Confusion, with one tab stop a matrix ----
const confusion = r => {
  const matrix = new Int32Array(K * K);
  for (let n = 0; n < count; n++) matrix[truth[n] * K + guessOf(r, n)]++;
  return matrix;
};
function drawConfusion() {
  const all = RUNS.map(confusion), [a, b] = MATRICES[state.matrix];
  let darkest = 1;
  for (const matrix of all) matrix.forEach((n, i) => { if (i % (K + 1)) darkest = Math.max(darkest, n); });
  const shown = b === undefined ? all[a] : all[b].map((n, i) => n - all[a][i]);
  const cell = (t, g) => {
    const value = shown[t * K + g], off = t !== g;
    if (!value) return h("td");
    const color = b === undefined ? a : (value > 0) === off ? b : a;  // the run that did worse
    const text = b === undefined ? comma(value) : `${value > 0 ? "+" : "−"}${comma(Math.abs(value))}`;
    const shade = off ? Math.round(10 + 40 * Math.min(1, Math.abs(value) / darkest)) : 0;
    const key = `${state.matrix},${t},${g}`, name = `truth ${classes[t]}, guess ${classes[g]}: ${text}`;
    return h("td", { class: runClass(color), style: `--shade:${shade}%` }, button(`cell-${key}`, text,
      () => change({ cell: state.cell === key ? "" : key }),
      { tabindex: -1, "aria-label": name, title: name, "aria-pressed": String(state.cell === key), class: off ? null : "hint" }));
  };
  const tabs = MATRICES.map((pair, i) => button(`matrix-${i}`, h("bdi", null, matrixName(pair)),
    () => change({ matrix: i }), { "aria-pressed": String(i === state.matrix) }));
  const table = h("table", { class: "matrix", "aria-label": `confusion, ${matrixName(MATRICES[state.matrix])}`, onkeydown: rove },
    h("tr", null, h("td", { class: "hint" }, "truth ↓ guess →"), CLASSES.map(k => h("th", { scope: "col" }, className(k)))),
    CLASSES.map(t => h("tr", null, h("th", { scope: "row" }, className(t)), CLASSES.map(g => cell(t, g)))));
  (table.querySelector("[aria-pressed=true]") ?? table.querySelector("button"))?.setAttribute("tabindex", 0);
  const hint = b === undefined ? "" : `${label(b)} minus ${label(a)}: + is more, − is fewer. `;
  fill("confusion", h("div", { class: "tabs", role: "group", "aria-label": "matrix" }, tabs),
    h("div", { class: "scroll" }, table),
    h("p", { class: "hint" }, `${hint}The same shade is the same count in all. Press a number to see its images.`));
}
function rove(event) {  // arrow keys go to the next number in their direction
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
  const from = event.target.closest("td");
  if (down === undefined || !from) return;
  event.preventDefault();
  const { rows } = from.closest("table");
  let [y, x] = [from.parentNode.rowIndex + down, from.cellIndex + right];
  while (rows[y]?.cells[x] && !rows[y].cells[x].querySelector("button")) [y, x] = [y + down, x + right];
  const to = rows[y]?.cells[x]?.querySelector("button");
  if (!to) return;
  event.target.setAttribute("tabindex", -1);
  to.setAttribute("tabindex", 0);
  to.focus();
}

// ---- Suspected label errors ----
function drawSuspects() {
  const item = n => h("div", { class: "card" }, opener(n, 56), h("div", null, "label ", h("b", null, className(truth[n])),
    h("br"), "runs say ", h("b", null, className(data.suggested[n])), h("br"),
    h("span", { class: "hint" }, data.margin[n].toFixed(2).replace("-", "−"))));
  fill("suspects", h("p", { class: "hint" }, "lowest margin of the label over the last three epochs of all runs"),
    h("div", { class: "gallery" }, suspects.slice(0, 12).map(item)),
    button("suspects", "sort the list by this", () => change({ ...clear, sort: "margin", down: "" })));
}

// ---- Wrong guesses, grouped by guess: the runs around one axis of true classes ----
const unseen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) target.show();
}, { rootMargin: "800px" });

function drawGroups() {
  const members = RUNS.map(() => CLASSES.map(() => CLASSES.map(() => [])));  // run, guess, truth -> rows
  let total = 0, longest = 1;
  for (const r of RUNS) for (let n = 0; n < count; n++) if (wrong(r, n)) {
    const rows = members[r][guessOf(r, n)][truth[n]];
    total++;
    longest = Math.max(longest, rows.push(n));
  }
  const mirrored = R === 2;
  const bar = (r, rows) => h("div", { class: `bar ${runClass(r)}` },
    rows.length > 0 && [h("i", { style: `width:${80 * rows.length / longest}%` }), h("span", null, rows.length)]);
  const pictures = (r, g) => {
    const rows = members[r][g].flat();
    const area = h("div", { class: `pictures ${runClass(r)}` }, h("b", { title: label(r) }, comma(rows.length)));
    area.show = () => { area.append(...rows.map(n => opener(n, 42))); area.show = () => {}; };
    if (total < 2000) area.show(); else unseen.observe(area);
    return area;
  };
  const axis = g => h("div", { class: "axis" }, CLASSES.filter(t => RUNS.some(r => members[r][g][t].length)).map(t => {
    const parts = RUNS.map(r => bar(r, members[r][g][t]));
    parts.splice(mirrored ? 1 : 0, 0, h("span", { class: "name" }, className(t)));
    return h("div", { class: "line", style: `--runs:${R}` }, parts);
  }));
  const group = g => h("div", { class: "wrongs" }, h("b", { class: "name" }, className(g)),
    mirrored ? [pictures(0, g), axis(g), pictures(1, g)] : [axis(g), h("div", null, RUNS.map(r => pictures(r, g)))]);
  const shown = CLASSES.filter(g => members.some(run => run[g].some(rows => rows.length)));
  const names = mirrored ? [runName(0), h("span", { class: "hint" }, "true class"), runName(1)]
    : [h("span", { class: "hint" }, "true class"), RUNS.map(r => [runName(r), " "])];
  unseen.disconnect();
  $("groups").className = mirrored ? "mirrored" : "";
  fill("groups", shown.length ? [h("div", { class: "wrongs heads" }, h("span", { class: "hint" }, "guess"), mirrored ? names
    : names.map(name => h("div", null, name))), shown.map(group)] : h("p", null, "Nothing is wrong."));
}

// ---- Training dynamics ----
const MAP = { width: 560, height: 260, left: 40, right: 10, top: 8, bottom: 34, widest: 0.5 };
const mapX = spread => MAP.left + spread / MAP.widest * (MAP.width - MAP.left - MAP.right);
const mapY = mean => MAP.top + (1 - mean) * (MAP.height - MAP.top - MAP.bottom);

function dataMap(r) {
  const { mean, spread } = data.runs[r], paths = ["", ""], seen = new Set();
  for (let n = 0; n < count; n++) {
    const x = Math.round(mapX(spread[n] / 65535)), y = Math.round(mapY(mean[n] / 65535)), bad = wrong(r, n);
    const dot = (x * 1000 + y) * 2 + bad;
    if (seen.has(dot)) continue;
    seen.add(dot);
    paths[Number(bad)] += bad ? `M${x - 3} ${y - 3}l6 6m0-6l-6 6` : `M${x - 1} ${y - 1}h2v2h-2z`;
  }
  const text = (x, y, words, anchor = "start") => h("text", { x, y, "text-anchor": anchor }, words);
  const levels = [0, 0.25, 0.5, 0.75, 1].map(y => [
    h("line", { class: "grid", x1: MAP.left, x2: MAP.width - MAP.right, y1: mapY(y), y2: mapY(y) }),
    text(MAP.left - 5, mapY(y) + 4, y, "end")]);
  const marks_ = [0, 0.1, 0.2, 0.3, 0.4, 0.5].map(x => text(mapX(x), MAP.height - MAP.bottom + 15, x, "middle"));
  const [side_, left, right, low, high] = state.box.split(",").map(Number);
  const box = h("rect", { class: "box", ...state.box && side_ === r ? rectangle(left, right, low, high) : {} });
  const svg = h("svg", { viewBox: `0 0 ${MAP.width} ${MAP.height}`, class: `map ${runClass(r)}`, role: "img",
    "aria-label": `data map of ${label(r)}: mean of the truth score against its spread` }, levels, marks_,
  text((MAP.left + MAP.width) / 2, MAP.height - 3, "spread of the truth score over the epochs", "middle"),
  h("path", { d: paths[0], class: "right" }), h("path", { d: paths[1], class: "wrong" }),
  text(mapX(0.01), mapY(0.9), "easy"), text(mapX(0.42), mapY(0.5), "ambiguous"),
  text(mapX(0.01), mapY(0.04), "hard or mislabelled"), box);
  let start = null;
  const place = event => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const within = value => Math.min(1, Math.max(0, value));
    return [MAP.widest * within((point.x - mapX(0)) / (mapX(MAP.widest) - mapX(0))),
      within((mapY(0) - point.y) / (mapY(0) - mapY(1)))];
  };
  const sides = ([x1, y1], [x2, y2]) =>
    [Math.min(x1, x2), Math.max(x1, x2), Math.min(y1, y2), Math.max(y1, y2)].map(side => side.toFixed(3));
  svg.onpointerdown = event => { start = place(event); svg.setPointerCapture(event.pointerId); };
  svg.onpointermove = event => {
    if (start) for (const [name, value] of Object.entries(rectangle(...sides(start, place(event))))) box.setAttribute(name, value);
  };
  svg.onpointerup = event => {
    const drawn = start && sides(start, place(event));
    start = null;
    if (drawn) change({ box: drawn[1] - drawn[0] < 0.005 ? "" : [r, ...drawn].join(), show: "all" });
  };
  return svg;
}
const rectangle = (left, right, low, high) => ({ x: mapX(left), y: mapY(high),
  width: Math.max(0, mapX(right) - mapX(left)), height: Math.max(0, mapY(low) - mapY(high)) });

function drawDynamics() {
  $("dynamics-section").hidden = !moving.length;
  if (!moving.length) return;
  const chosen = moving.includes(state.map) ? state.map : moving[0];
  const moments = [...new Set([...moving.flatMap(r => columns[`right${r}`].names.slice(0, -2)), "forgotten", "never right"])];
  const place = (r, moment) => columns[`right${r}`].names.indexOf(moment);
  const counts = moving.map(r => moments.map(moment => {
    const k = place(r, moment);
    return data.runs[r].learned.reduce((sum, one) => sum + (one === k), 0);
  }));
  const cell = (i, m) => {
    const r = moving[i], number = counts[i][m];
    return h("td", { class: `bar ${runClass(r)}` }, h("i", { style: `width:${12 * Math.log10(1 + number)}%` }),
      button(`right-${r}-${m}`, comma(number), () => change({ ...clear, query: [[`right${r}`, "=", String(place(r, moments[m]))]] }),
        { "aria-label": `${label(r)} ${moments[m]}: ${number}` }));
  };
  fill("dynamics", h("div", null, h("p", { class: "hint" }, "A dot is one or more images, a cross a wrong guess. Drag a box to filter the list. ",
    moving.length > 1 && select("map", "run", moving.map(r => option(r, label(r), chosen)), event => change({ map: Number(event.target.value) }))),
  dataMap(chosen)),
  h("div", null, h("p", { class: "hint" }, "Right from an epoch to the end; forgotten: once right, wrong at the end. Bars grow with the logarithm."),
    h("table", { class: "facts learned" }, h("tr", null, h("th"), moving.map(r => h("th", { scope: "col" }, runName(r, "span")))),
      moments.map((moment, m) => h("tr", null, h("th", { scope: "row" }, moment), moving.map((_, i) => cell(i, m)))))));
}

// ---- Per class, and the agreement of three and more runs ----
function drawClasses() {
  const all = RUNS.map(confusion), share = (part, whole) => whole ? part / whole : 0;
  const measures = (matrix, k) => {
    const hits = matrix[k * K + k], support = CLASSES.reduce((sum, g) => sum + matrix[k * K + g], 0);
    const guesses = CLASSES.reduce((sum, t) => sum + matrix[t * K + k], 0);
    return [share(hits, guesses), share(hits, support), share(2 * hits, guesses + support)];
  };
  const cell = value => h("td", null, (100 * value).toFixed(2));
  const rows = CLASSES.map(k => {
    const of = all.map(matrix => measures(matrix, k)), gain = 100 * (of[R - 1][2] - of[0][2]);
    const support = truth.reduce((sum, t) => sum + (t === k), 0);
    return h("tr", null, h("th", { scope: "row" }, className(k)), h("td", null, comma(support)), of.flat().map(cell),
      R > 1 && h("td", null, `${gain > 0 ? "+" : ""}${gain.toFixed(2)}`.replace("-", "−")));
  });
  const heads = ["precision", "recall", "F1"];
  fill("classes", h("table", { class: "facts" },
    h("thead", null, h("tr", null, h("th"), h("th"), RUNS.map(r => h("th", { colspan: 3, scope: "colgroup" }, runName(r, "span"))), R > 1 && h("th")),
      h("tr", null, ["class", "images", ...RUNS.flatMap(() => heads), R > 1 && "change of F1"].filter(Boolean)
        .map(text => h("th", { scope: "col" }, text)))), h("tbody", null, rows)));
}
function drawAgreement() {
  $("agreement-section").hidden = R < 3;
  if (R < 3) return;
  const table = (title, f) => h("table", { class: "facts" }, h("caption", null, title),
    h("tr", null, h("th"), RUNS.map(r => h("th", { scope: "col" }, runName(r, "span")))),
    RUNS.map(a => h("tr", null, h("th", { scope: "row" }, runName(a, "span")), RUNS.map(b => h("td", null, f(a, b))))));
  const sum = test => range(count).reduce((total, n) => total + test(n), 0);
  fill("agreement",
    table("same guess, in percent", (a, b) => (100 * sum(n => guessOf(a, n) === guessOf(b, n)) / count).toFixed(2)),
    table("wrong in both", (a, b) => comma(sum(n => wrong(a, n) && wrong(b, n)))));
}

// ---- One image ----
const neighbours = n => found.includes(n) ? found : suspects.includes(n) ? suspects : [n];
function step(by) {
  const list = neighbours(rowOf(state.image)), to = list[list.indexOf(rowOf(state.image)) + by];
  if (to !== undefined) change({ image: String(idOf(to)) }, false);
}
function curves(r, n) {
  const { epochs } = runs[r], y = value => 90 - 84 * value, x = e => 8 + 280 * e / Math.max(1, epochs.length - 1);
  const drawn = CLASSES.map(k => [k, epochs.map((_, e) => data.runs[r].score(e, n, k))])
    .filter(([k, values]) => k === truth[n] || Math.max(...values) >= 0.02);
  const ends = drawn.map(([k, values]) => [k, values.at(-1)]).filter(([, value]) => value >= 0.08).sort((a, b) => b[1] - a[1]);
  let above = -Infinity;
  return h("svg", { viewBox: "0 0 340 100", class: "curves", role: "img", "aria-label": `scores of each class over the epochs of ${label(r)}` },
    h("line", { class: "grid", x1: 8, x2: 288, y1: 90, y2: 90 }),
    epochs.length > 1 && h("line", { class: "ideal", x1: x(views[state.epoch].at[r]), x2: x(views[state.epoch].at[r]), y1: 4, y2: 90 }),
    drawn.map(([k, values]) => line(r, (values.length > 1 ? values : [values[0], values[0]]).map((v, e) =>
      [values.length > 1 ? x(e) : 8 + 280 * e, y(v)]), k === truth[n] ? {} : { class: "other" })),
    ends.map(([k, value]) => {
      above = Math.max(above + 11, y(value) + 4);
      return h("text", { x: 292, y: above, class: k === truth[n] ? "truth" : null }, classes[k].slice(0, 8));
    }));
}
function drawImage() {
  const dialog = $("image");
  if (state.image === "") { if (dialog.open) dialog.close(); return; }
  const n = rowOf(state.image), list = neighbours(n), place = list.indexOf(n);
  const doubtful = marks.has(String(idOf(n)));
  const top = [...CLASSES].sort((a, b) => most(n, (r, n) => score(r, n, b)) - most(n, (r, n) => score(r, n, a))).slice(0, 10);
  fill("image", h("div", { class: "tools" },
    button("image-previous", "←", () => step(-1), { "aria-label": "previous image", disabled: !place }),
    `${comma(place + 1)} of ${comma(list.length)}`,
    button("image-next", "→", () => step(1), { "aria-label": "next image", disabled: place === list.length - 1 }),
    button("image-mark", doubtful ? "✓ label marked as doubtful (L)" : "mark label as doubtful (L)", () => toggleMark(n), { "aria-pressed": String(doubtful) }),
    button("image-close", "close", () => dialog.close())),
  h("div", { class: "detail" }, tiles && picture(n, Math.max(280, side), { role: "img", "aria-label": about(n) }),
    h("div", null, h("h2", { id: "image-title" }, `image ${idOf(n)}: truth `, className(truth[n])),
      h("p", null, `margin of the label ${data.margin[n].toFixed(3).replace("-", "−")}; best other class `, h("b", null, className(data.suggested[n]))),
      RUNS.map(r => h("div", null, h("p", null, runName(r), " ", guessCell(r, n)), curves(r, n)))),
    h("table", { class: "facts" }, h("tr", null, h("th", { scope: "col" }, "score"), RUNS.map(r => h("th", { scope: "col" }, runName(r, "span")))),
      top.map(k => h("tr", { class: k === truth[n] ? "truth" : null }, h("th", { scope: "row" }, className(k), k === truth[n] && " (truth)"),
        RUNS.map(r => h("td", null, score(r, n, k).toFixed(4))))))));
  if (!dialog.open) dialog.showModal();
}

// ---- Drawing: a part is drawn again if what it shows has changed ----
const drawn = {};
function redraw(part, ...shown) {
  const key = JSON.stringify(shown);
  if (drawn[part.name] === key) return;
  drawn[part.name] = key;
  const focus = document.activeElement?.dataset?.key;
  part();
  if (focus && !document.activeElement?.dataset?.key) document.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
}
function draw() {
  const { image, map, matrix, page, size, gallery, ...filters } = state, { epoch, cell, box } = state;
  redraw(drawView, epoch);
  redraw(drawChips, epoch, state.show);
  redraw(drawTools, state, marks.size);
  redraw(drawQuery, state.query, state.any, epoch);
  const before = JSON.stringify([filters, [...marks]]);
  if (before !== drawn.found) { found = filtered(); drawn.found = before; }
  redraw(drawFilters, filters, found.length);
  redraw(drawList, filters, page, size, gallery, [...marks]);
  redraw(drawConfusion, epoch, matrix, cell);
  redraw(drawSuspects);
  redraw(drawGroups, epoch);
  redraw(drawDynamics, epoch, map, box);
  redraw(drawClasses, epoch);
  redraw(drawAgreement, epoch);
  redraw(drawImage, image, epoch, [...marks], found.length);
}
function drawView() {
  for (const section of document.querySelectorAll("[data-view]:not(circle)")) section.hidden = Number(section.dataset.view) !== state.epoch;
  verdict = Uint8Array.from(range(count), findVerdict);
  fill("runs", RUNS.map(r => [h("span", { class: `run ${runClass(r)}` },
    h("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, line(r, [[0, 4], [26, 4]])), runName(r)), " "]),
  h("span", { class: "hint" }, `${comma(count)} images`));
  $("slider").hidden = views.length < 2;
  $("epoch").value = state.epoch;
  $("at").value = views[state.epoch].epoch;
}

$("epoch").max = views.length - 1;
$("epoch").oninput = event => { state.epoch = Number(event.target.value); draw(); };
$("epoch").onchange = event => { state.epoch = Number(event.target.value); writeAddress(true); draw(); };
$("answers").onclick = event => {
  const view = event.target.closest("circle[data-view]")?.dataset.view;
  if (view !== undefined) change({ epoch: Number(view) });
};
$("image").removeAttribute("open");
$("image").onclose = () => {
  const id = state.image;
  if (id) change({ image: "" });
  document.querySelector(`[data-key="${CSS.escape(`image-${id}`)}"]`)?.focus();
};
$("image").onkeydown = event => {
  const act = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), l: () => toggleMark(rowOf(state.image)) };
  act[event.key.length === 1 ? event.key.toLowerCase() : event.key]?.();
};
window.onhashchange = () => { readAddress(); draw(); };
readAddress();
draw();
document.documentElement.dataset.ready = "yes";
