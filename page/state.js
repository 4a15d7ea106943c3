// What is known of each image, the columns, and the state: the filters and the order of the list.
const label = r => views[state.epoch].labels[r], shortLabel = r => views[state.epoch].short[r];

// ---- What is known of an image in the view that is shown ----
const guessOf = (r, n) => data.runs[r].guess[views[state.epoch].at[r]][n];
const score = (r, n, k) => data.runs[r].score(views[state.epoch].at[r], n, k);
const knownClasses = (r, n) => data.runs[r].known(views[state.epoch].at[r], n);
const wrong = (r, n) => hasTruth && guessOf(r, n) !== truth[n];
const truthScore = (r, n) => data.runs[r].truthScore(views[state.epoch].at[r])[n];
const guessScore = (r, n) => score(r, n, guessOf(r, n));
const idOf = n => facts.ids ? facts.ids[n] : n;
const rowOf = id => facts.ids ? facts.ids.findIndex(other => String(other) === id) : Number(id);
const most = (n, f) => RUNS.reduce((best, r) => Math.max(best, f(r, n)), -Infinity);
const least = (n, f) => RUNS.reduce((worst, r) => Math.min(worst, f(r, n)), Infinity);
let verdict = null;  // of each image in the view that is shown, a place in VERDICTS
const shows = hasTruth ? { wrong: v => v > 0 } : {};  // the chips: which verdicts pass
if (hasTruth && R === 2) shows.disagree = v => v > 0 && VERDICTS[v] !== "both wrong the same";
VERDICTS.slice(R > 1 ? 1 : 2).forEach((name, i) => { shows[name] = v => v === i + 1; });
shows.all = () => true;
// Labels that the reader marks as doubtful, by id. A browser may forbid a local page to store them.
const storage = `doubtful: ${document.title}, ${truth.reduce((hash, k) => (31 * hash + k) | 0, count)}`;
let marks = new Set(), stored = true;
function readMarks() {  // another window may have stored some
  try { if (stored) marks = new Set(JSON.parse(localStorage.getItem(storage) ?? "[]")); } catch { /* none */ }
}
function toggleMark(n) {
  readMarks();
  if (!marks.delete(String(idOf(n)))) marks.add(String(idOf(n)));
  try { localStorage.setItem(storage, JSON.stringify([...marks])); } catch { stored = false; }  // not kept
  draw();
}
const wrongScore = (r, n) => wrong(r, n) ? guessScore(r, n) : 0;

// ---- Columns: what can be sorted, queried and grouped. `names` if the values are places in a list ----
// `from` is the lowest value of a column of scores or of their differences; the highest is 1.
const columns = {}, rising = true, from = 0;
const addColumn = (key, title, value, more) => { columns[key] = { title: () => title, value, ...more }; };
if (complete && R > 1)
  addColumn("change", "change of truth score", n => most(n, truthScore) - least(n, truthScore),
    { from });
if (complete) addColumn("mistake", "most confident wrong guess", n => most(n, wrongScore), { from });
if (hasScores) addColumn("sure", "least sure guess", n => least(n, guessScore), { from, rising });
if (complete) addColumn("margin", "margin of the label", n => data.margin[n], { from: -1, rising });
addColumn("id", "id", idOf, { rising });
if (hasTruth) addColumn("truth", "truth", n => truth[n], { names: classes });
addColumn("verdict", "verdict", n => verdict[n], { names: VERDICTS });
if (hasTruth)
  addColumn("doubtful", "label marked as doubtful", n => Number(marks.has(String(idOf(n)))),
    { names: ["no", "yes"], rising: false });
for (const r of RUNS) {
  const { learned, forgotten, mean, spread } = data.runs[r];
  const moments = [...runs[r].epochs.map(epoch => `since epoch ${epoch}`), "forgotten", "never right"];
  const add = (key, title, value, more) =>
    addColumn(key + r, "", value, { title: (name = label) => `${title}, ${name(r)}`, ...more });
  add("guess", "guess", n => guessOf(r, n), { names: classes });
  if (hasScores) add("score", "score of the guess", n => guessScore(r, n), { from });
  if (complete) add("truth", "truth score", n => truthScore(r, n), { from });
  if (moving.includes(r)) {
    const { title: whole, short } = runs[r];
    const addPast = (key, title, value, more) => add(key, title, value,
      { title: name => `${title}, ${name === shortLabel ? short : whole}`, ...more });
    addPast("mean", "mean truth score of the epochs", n => mean[n] / 65535, { from });
    addPast("spread", "spread of the truth score", n => spread[n] / 65535, { from });
    addPast("right", "right", n => learned[n], { names: moments });
    addPast("forgotten", "times forgotten", n => forgotten[n]);
  }
  for (const k of hasScores && allScores ? CLASSES : [])
    add(`class${k}_`, `score of ${classes[k]}`, n => score(r, n, k), { from });
}
const GROUPS = ["truth", "verdict", ...RUNS.map(r => `guess${r}`)].filter(key => columns[key]);
const TESTS = { "=": (a, b) => a === b, "≠": (a, b) => a !== b, "<": (a, b) => a < b,
  "≤": (a, b) => a <= b, ">": (a, b) => a > b, "≥": (a, b) => a >= b,
  contains: (a, b) => String(a).toLowerCase().includes(String(b).toLowerCase()) };  // of text
const isText = ({ value }) => typeof value(0) === "string";
// Confusion matrices: of each run, and the difference of each later run to the first.
const MATRICES = [...RUNS.map(r => [r]), ...RUNS.slice(1).map(r => [0, r])];
const matrixName = ([a, b]) => !b ? label(a) : R === 2 ? "difference" : `${label(b)} − ${label(a)}`;
const matrixTab = ([a, b]) => !b ? shortLabel(a) : R === 2 ? "difference" : `Δ ${shortLabel(b)}`;

// ---- The state: everything that the address holds ----
const firstChip = Object.keys(shows).find(key => data.verdicts[facts.start].some(shows[key]));
const [firstColumn] = Object.keys(columns);
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
  const isPlace = list => text => list.some((_, place) => String(place) === text), isClass = isPlace(classes);
  const [matrix, ...pair] = state.cell.split(","), [run, ...sides] = state.box.split(",");
  const valid = {
    epoch: views[state.epoch], truth: isClass(state.truth), guess: isClass(state.guess),
    show: Object.hasOwn(shows, state.show), sort: Object.hasOwn(columns, state.sort),
    cell: isPlace(MATRICES)(matrix) && pair.length === 2 && pair.every(isClass),
    box: moving.map(String).includes(run) && sides.length === 4 && sides.every(x => /^\d(\.\d+)?$/.test(x)),
    matrix: MATRICES[state.matrix], map: moving.includes(state.map),
    group: GROUPS.includes(state.group), image: rowOf(state.image) in truth,
  };
  for (const name in valid) if (!valid[name]) state[name] = DEFAULTS[name];
}
function writeAddress(push) {
  const given = new URLSearchParams();
  for (const name in DEFAULTS) if (state[name] !== DEFAULTS[name]) given.set(name, state[name]);
  if (String(given) === location.hash.slice(1)) return;
  try {
    history[push ? "pushState" : "replaceState"](null, "", `#${given}`);
  } catch { /* Firefox and Safari refuse many changes in a short time; a later one is written */ }
}
function change(changes, push = true) {
  const keep = ["page", "image", "matrix", "map"].some(name => name in changes);
  state = { ...state, ...!keep && { page: 0 }, ...changes };
  writeAddress(push);
  draw();
}

// ---- Filter and sort ----
let found = [];  // the images that pass the filters, in order
function wantedValue([key, , text]) {  // null if nothing is typed, NaN if it cannot be understood
  const { names, from: lowest } = columns[key], isScore = lowest !== undefined, typed = text.trim();
  if (typed === "" || isText(columns[key])) return typed || null;
  if (names) return /^\d+$/.test(typed) && Number(typed) < names.length ? Number(typed) : NaN;
  const number = typed.replace("−", "-").replace(/\s*%$/, "");
  const plain = isScore ? number.replace(",", ".") : number.replace(/,(?=\d{3}\b)/g, "");  // 0,9 and 10,000
  const wanted = plain === "" ? NaN : Number(plain) / (typed.endsWith("%") ? isScore ? 100 : NaN : 1);
  return Number.isFinite(wanted) && !(isScore && (wanted < lowest || wanted > 1)) ? wanted : NaN;
}
const unitOf = column => column.from === 0 ? "0 to 1" : column.from ? "−1 to 1"
  : isText(column) ? "text" : "number";
const WANTED = { "0 to 1": "a number from 0 to 1, or a percentage", "−1 to 1": "a number from −1 to 1",
  number: "a number" };  // else not applied
const isApplied = wanted => wanted !== null && !Number.isNaN(wanted);
function conditionTest(condition) {
  const [key, test] = condition, { value } = columns[key], wanted = wantedValue(condition);
  return isApplied(wanted) && (n => TESTS[test](value(n), wanted));
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
  const groups = new Uint16Array(count), keys = new Array(count);
  for (const n of images) {
    groups[n] = group(n);
    keys[n] = value(n);
  }
  const order = (x, y) => x > y ? sign : x < y ? -sign : 0;
  return images.sort((a, b) => groups[a] - groups[b] || order(keys[a], keys[b]) || a - b);
}
function findImages() {
  const tests = [n => shows[state.show](verdict[n])];
  if (state.truth) tests.push(n => truth[n] === Number(state.truth));
  if (state.guess) tests.push(n => RUNS.some(r => guessOf(r, n) === Number(state.guess)));
  if (state.cell) tests.push(cellTest());
  if (state.box) tests.push(boxTest());
  const queried = conditions().map(conditionTest).filter(Boolean), how = state.any ? "some" : "every";
  if (queried.length) tests.push(n => queried[how](test => test(n)));
  found = sorted(range(count).filter(n => tests.every(test => test(n))));
}
