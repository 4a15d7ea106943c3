// What the page draws from the data, and what its controls do.
function cut(text, kept = 6) {  // a long name is cut in its middle, because names often differ at their ends
  const letters = [...text], end = letters.splice(letters.length > kept + 4 ? -kept : letters.length);
  const parts = end.length ? [letters, end].map(part => h("span", null, part.join(""))) : text;
  return h("bdi", { title: text, class: end.length > 0 && "cut" }, parts);
}
const className = k => cut(classes[k]);
const runName = (r, tag = "b", name = h("bdi", null, breakable(shortLabel(r)))) =>
  h(tag, { class: runClass(r), title: label(r) }, name);

// ---- Pieces that several sections show ----
const side = tiles ? Math.max(tiles.width, tiles.height) : 0;
const rowSide = side <= 48 ? 42 : Math.min(side, 160);  // small pictures are enlarged, larger ones not
function picture(n, wanted = rowSide, more = {}) {
  const across = tiles.columns, place = n % across ** 2, sheet = Math.floor(n / across ** 2);
  const style = `--scale:${wanted / side};--x:${place % across};--y:${Math.floor(place / across)}`;
  return h("span", { class: `picture sheet${sheet}`, style, ...more });
}
const shortNames = {};  // by length
function shorten(length) {  // the first letters of each name, or else the first that tell it from others
  const letters = classes.map(name => [...name]), names = [], taken = new Set();
  const text = (k, start, end) => letters[k].slice(start, end).join("");
  const edges = k => range(length).map(i => text(k, 0, i) + text(k, i - length));
  const same = ([first, ...others], i) => others.every(k => letters[k][i] === letters[first][i]);
  const groups = [[CLASSES, 0]];  // names that are alike up to a letter
  for (const [group, start] of groups)
    for (const [name, alike] of Map.groupBy(group, k => text(k, start, start + length))) {
      const last = Math.min(...alike.map(k => letters[k].length)) - 1;
      let end = start;
      while (end < last && same(alike, end)) end++;
      if (alike.length > 1 && end > start) groups.push([alike, end]);
      else for (const k of alike) {
        names[k] = [name, ...edges(k)].find(one => !taken.has(one)) ?? name;
        taken.add(names[k]);
      }
    }
  return names;
}
const shortName = (k, length) => (shortNames[length] ??= shorten(length))[k];
const bestClasses = (n, limit, top = k => most(n, r => score(r, n, k))) =>
  [...new Set(RUNS.flatMap(r => knownClasses(r, n)))].sort((a, b) => top(b) - top(a)).slice(0, limit);
const withTruth = (n, list) => hasTruth && !list.includes(truth[n]) ? [truth[n], ...list] : list;
const about = n => `image ${idOf(n)}${hasTruth ? `, truth ${classes[truth[n]]}` : ""}`;
const open = n => () => change({ image: String(idOf(n)) });
const idName = n => cut(String(idOf(n)), 12);
const opener = (n, wanted) => button(`image-${idOf(n)}`, tiles ? picture(n, wanted) : idName(n), open(n),
  { class: "open", "aria-label": about(n), title: about(n) });
const mark = (kind, name, text) =>
  [h("span", { class: kind, role: "img", "aria-label": name }, text), "\u00a0"];
const guessCell = (r, n) => [
  hasTruth && (wrong(r, n) ? mark("bad", "wrong", "✗") : mark("ok", "right", "✓")),
  h("b", null, className(guessOf(r, n))),
  hasScores && [" ", h("span", { class: "hint" }, percent(guessScore(r, n)))]];
function bars(n) {  // the scores of each class, or of the highest ones: a bar per run, the truth underlined
  const shown = FEW ? CLASSES : withTruth(n, bestClasses(n, allScores ? 6 : 10));
  const width = FEW ? 160 : 250, part = width / shown.length, wide = (part - 2) / R;
  const letters = Math.floor(width / (FEW ? K : allScores ? 7 : 11) / 6);
  const bar = (r, k, i) => `M${i * part + 1 + r * wide} 30v${-29 * score(r, n, k)}h${0.9 * wide}V30`;
  const barsOf = r => h("path", { class: runClass(r), d: shown.map((k, i) => bar(r, k, i)).join("") });
  const name = (k, x) =>
    h("text", { x, y: 39, class: k === truth[n] && "truth" }, shortName(k, letters));
  const isolated = k => `\u2068${classes[k]}\u2069`;  // keeps the numbers after it in order
  const words = shown.map(k => `${isolated(k)}: ${RUNS.map(r => percent(score(r, n, k))).join(", ")}`);
  return h("span", { title: words.join("\n") }, chart(width, 42, "bars", `scores ${words.join("; ")}`,
    RUNS.map(barsOf), shown.map((k, i) => name(k, (i + 0.5) * part))));
}
const pastEpochs = past.flatMap(r => runs[r].epochs), firstEpoch = Math.min(...pastEpochs);
const along = epoch => (epoch - firstEpoch) / (Math.max(...pastEpochs) - firstEpoch);  // in all runs
function sparkline(n) {
  const lines = moving.map(r => line(r, runs[r].epochs.map((epoch, e) =>
    [3 + 84 * along(epoch), 32 - 30 * data.runs[r].score(e, n, truth[n])])));
  const words = RUNS.map(r => `${label(r)} ${percent(truthScore(r, n))}`).join(", ");
  return chart(90, 34, "spark", `truth score by epoch, now ${words}`, gridLine(0, 90, 33), lines);
}

// ---- The list ----
function reveal(changes) {  // change from afar: the list comes into view
  change(changes);
  const { top } = $("filters").getBoundingClientRect();
  if (top < 0 || top > document.documentElement.clientHeight) $("predictions").parentElement.scrollIntoView();
}
const clear = { show: "all", truth: "", guess: "", cell: "", box: "", query: "", any: "" };
function sortBy(key) {
  const upwards = state.sort === key ? state.down : columns[key].rising ?? columns[key].names;
  change({ sort: key, down: upwards ? "" : "1" });
}
function drawChips() {
  const counts = VERDICTS.map(() => 0);
  for (const v of verdict) counts[v]++;
  const chip = key => {
    const number = counts.reduce((total, images, v) => shows[key](v) ? total + images : total, 0);
    const name = key === "wrong" && R > 1 ? "any wrong" : key;
    const by = /fixed|broken/.test(key) ? ` by ${label(1)}` : "";
    return button(`chip-${key}`, [h("b", null, comma(number)), ` ${name}`], () => change({ show: key }),
      { title: name + by, "aria-pressed": String(state.show === key) });
  };
  fill("chips", Object.keys(shows).map(chip));
}
function drawTools() {
  fill("sort", Object.keys(columns).map(key => option(key, columns[key].title(shortLabel), state.sort)));
  for (const name of ["truth", "guess"]) $(name).value = state[name];
  fill("group", ["", ...GROUPS].map(key => option(key, columns[key]?.title(shortLabel) ?? "–", state.group)));
  $("down").textContent = state.down ? "↓ high" : "↑ low";
  $("gallery").ariaPressed = String(Boolean(state.gallery));
  $("marks").textContent = marks.size ? `${marks.size} doubtful, CSV` : "";
}
function drawQuery() {
  const titles = Object.entries(columns).map(([key, column]) => [key, column.title(shortLabel)]);
  const row = (condition, i) => {
    const [key, test, value] = condition, column = columns[key], { names } = column, unit = unitOf(column);
    const isInvalid = Number.isNaN(wantedValue(condition)), invalid = { "aria-invalid": String(isInvalid) };
    const edit = (p, text) => change(queryOf(conditions().with(i, condition.with(p, text))));
    const part = (p, tag, more, ...options) => h(tag, { ...more, "data-key": `query-${i}-${p}`,
      "aria-label": `${["column", "comparison", "value"][p]} of condition ${i + 1}`,
      onchange: ({ target }) => setTimeout(edit, 0, p, target.value) }, options);  // after Tab has moved on
    return h("div", { class: "tools" },
      part(0, "select", null, titles.map(([other, title]) => option(other, title, key))),
      part(1, "select", null, Object.keys(TESTS).filter(other => other !== "contains" || isText(column)
        || other === test).map(other => option(other, other, test))),
      names ? part(2, "select", invalid, [["", "…"], ...names.entries()].map(one => option(...one, value)))
        : part(2, "input", { value, placeholder: unit, size: 8, ...invalid }),
      isInvalid && h("span", { class: "bad" }, `not applied: ${WANTED[unit]} is needed`),
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
  const asked = conditions(), applied = asked.filter(condition => isApplied(wantedValue(condition))).length;
  const query = applied < asked.length ? `query: ${applied} of ${asked.length} conditions` : "query";
  fill("filters", h("span", { id: "shown" }, h("b", null, comma(found.length)), ` of ${counted(count)}`),
    state.cell && remove("cell", `truth ${classes[t]}, guess ${classes[g]} by ${whose}`, { cell: "" }),
    state.box
      && remove("box", `${runs[r].title}: mean ${low}–${high}, spread ${left}–${right}`, { box: "" }),
    state.query && remove("query", query, { query: "", any: "" }),
    filters && button("clear", "show all images", () => change(clear)));
}
const listColumns = () => [
  tiles && ["", "image", n => opener(n)],
  ["id", "id", n => tiles ? idName(n) : opener(n)],
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
    const images = counted(found.filter(other => group.value(other) === value).length);
    return [`${group.title()}: `, h("bdi", null, group.names[value]), `, ${images}`];
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
    const isUseless = to === page || to < 0 || to >= pages;
    $(id).ariaDisabled = String(isUseless);  // a disabled button would lose the focus, and the keys with it
    $(id).onclick = () => isUseless || change({ page: to });
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
  const each = f => (hasScores ? RUNS : []).flatMap(f), ranks = range(10);
  const scoreNames = allScores ? CLASSES.map(k => `score_${k}`)
    : ["truth_score", ...ranks.flatMap(i => [`best_${i + 1}`, `best_${i + 1}_score`])];
  const names = ["id", "truth", "verdict", ...RUNS.map(r => `guess ${label(r)}`),
    ...each(r => scoreNames.map(text => `${text} ${label(r)}${note(r)}`))];
  const values = (r, n) => {
    if (allScores) return CLASSES.map(k => digits(score(r, n, k)));
    const best = data.runs[r].best(views[state.epoch].at[r], n), known = i => i < best.length;
    return [hasTruth ? digits(truthScore(r, n)) : "", ...ranks.flatMap(i =>
      known(i) ? [classes[best[i]], digits(score(r, n, best[i]))] : ["", ""])];
  };
  const row = n => [idOf(n), hasTruth ? classes[truth[n]] : "", VERDICTS[verdict[n]],
    ...RUNS.map(r => classes[guessOf(r, n)]), ...each(r => values(r, n))];
  download("predictions.csv", [names, ...found.map(row)]);
}
function downloadMarks() {
  const marked = range(count).filter(n => marks.has(String(idOf(n))));
  const suggested = n => isSuspect(n) ? classes[data.suggested[n]] : "";  // else the runs agree with it
  const margin = n => complete ? Number(data.margin[n].toPrecision(6)) : "";
  download("doubtful.csv", [["id", "truth", "suggested", "margin"],
    ...marked.map(n => [idOf(n), classes[truth[n]], suggested(n), margin(n)])]);
}

// ---- Confusion ----
// What is shown of many, the most frequent first.
const MOST = { pairs: 20, truths: FEW ? K : 8, guesses: allScores ? K : 20, pictures: allScores ? 200 : 40 };
const sum = f => RUNS.reduce((total, r) => total + f(r), 0);
function tally(list) {
  const counts = new Map();
  for (const key of list) counts.set(key, (counts.get(key) ?? 0) + 1);
  return counts;
}
function classesIn(maps, inOrder, total) {  // their keys: in order, or those with the highest total first
  const keys = [...new Set(maps.flatMap(map => [...map.keys()]))];
  return keys.sort((a, b) => inOrder ? a - b : total(b) - total(a) || a - b);
}
function confusion(r) {
  const matrix = new Int32Array(K * K);
  for (let n = 0; n < count; n++) matrix[truth[n] * K + guessOf(r, n)]++;
  return matrix;
}
function drawMatrix() {
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
      () => reveal({ cell: state.cell === key ? "" : key }), { title: name, "aria-label": name,
        "aria-pressed": String(state.cell === key), class: !isError && "hint" }));
  };
  const matrix = table("matrix", [["truth ↓", h("br"), "guess →"], ...CLASSES.map(className)],
    CLASSES.map(t => [className(t), ...CLASSES.map(g => cell(t, g))]));
  matrix.ariaLabel = `confusion, ${matrixName(MATRICES[state.matrix])}`;
  fill("matrices", MATRICES.map((pair, i) => button(`matrix-${i}`, h("bdi", null, matrixTab(pair)),
    () => change({ matrix: i }), { title: matrixName(pair), "aria-pressed": String(i === state.matrix) })));
  fill("confusion", oneTabStop(matrix, matrix.querySelector("[aria-pressed=true]")));
  const difference = isRun ? "" : `${label(b)} minus ${label(a)}. `;
  $("minus").textContent = R > 1 ? `${difference}Same shade, same count.` : "";
}

let pairs = [], pairCounts = [];  // truth * K + guess, the most frequent first; images of each run
function countPairs() {  // instead of a matrix of many classes
  const lists = RUNS.map(r => range(count).filter(n => wrong(r, n)).map(n => truth[n] * K + guessOf(r, n)));
  const totals = tally(lists.flat());
  pairCounts = lists.map(tally);
  pairs = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a) || a - b);
}
function drawPairs() {
  const cell = (r, pair, t, g) => {
    const number = comma(pairCounts[r].get(pair) ?? 0), key = `${r},${t},${g}`;
    return h("td", null, button(`cell-${key}`, number, () => reveal({ cell: state.cell === key ? "" : key }),
      { "aria-label": `truth ${classes[t]}, guess ${classes[g]} by ${label(r)}: ${number}`,
        "aria-pressed": String(state.cell === key) }));
  };
  const row = pair => {
    const t = Math.floor(pair / K), g = pair % K;
    return [className(t), h("td", null, className(g)), RUNS.map(r => cell(r, pair, t, g))];
  };
  const shown = pairs.slice(0, MOST.pairs);
  const heads = ["truth", "guess", ...RUNS.map(r => runName(r))];
  fill("confusion", oneTabStop(table("facts pairs", heads, shown.map(row))));
  const some = shown.length < pairs.length ? `The ${shown.length} most frequent of ` : "";
  $("minus").textContent = `${some}${comma(pairs.length)} confused pairs.`;
}

// ---- Wrong guesses, grouped by guess: the runs around one axis of true classes ----
function drawGroups() {
  const groups = RUNS.map(() => new Map());  // guess -> images
  for (const r of RUNS)
    for (let n = 0; n < count; n++) {
      if (!wrong(r, n)) continue;
      const g = guessOf(r, n);
      if (!groups[r].has(g)) groups[r].set(g, []);
      groups[r].get(g).push(n);
    }
  const imagesOf = (r, g) => groups[r].get(g) ?? [];
  const guesses = classesIn(groups, allScores, g => sum(r => imagesOf(r, g).length));
  const shown = guesses.slice(0, MOST.guesses).map(g => {
    const counts = RUNS.map(r => tally(imagesOf(r, g).map(n => truth[n])));
    return { g, counts, truths: classesIn(counts, FEW, t => sum(r => counts[r].get(t) ?? 0)) };
  });
  const longest = Math.max(1, ...shown.flatMap(({ counts }) => counts.flatMap(map => [...map.values()])));
  const wide = length => `width:calc((100% - 2rem) * ${length / longest} + 2px)`;
  const bar = (r, length) => h("div", { class: `bar ${runClass(r)}` },
    length > 0 && [h("i", { style: wide(length) }), h("span", null, comma(length))]);
  const more = (number, what) => number > 0 && h("div", { class: "hint" }, `+${what(number)}`);
  const pictures = (r, images, truths) => {  // in the order of their true classes
    const places = new Map(truths.map((t, i) => [t, i])), place = n => places.get(truth[n]);
    const some = images.sort((a, b) => place(a) - place(b) || a - b).slice(0, MOST.pictures);
    return oneTabStop(h("div", { class: `pictures ${runClass(r)}` },
      h("b", { title: label(r) }, comma(images.length)),
      some.map(n => opener(n, Math.min(64, rowSide))), more(images.length - MOST.pictures, counted)));
  };
  const axisLine = (t, counts) => h("div", { class: "line" },
    h("span", { class: "name" }, className(t)), RUNS.map(r => bar(r, counts[r].get(t) ?? 0)));
  const row = (kind, name, middle, parts) =>
    h("div", { class: `wrongs ${kind}` }, h("b", { class: "name" }, name), h("div", null, middle), parts);
  const axis = (truths, counts) => [truths.slice(0, MOST.truths).map(t => axisLine(t, counts)),
    more(truths.length - MOST.truths, number => `${comma(number)} class${number === 1 ? "" : "es"}`)];
  const group = ({ g, counts, truths }) =>
    row("", className(g), axis(truths, counts), RUNS.map(r => pictures(r, imagesOf(r, g), truths)));
  const heads = row("heads", "guess", "true class", RUNS.map(r => h("div", null, runName(r))));
  fill("groups", heads, shown.map(group), !shown.length && h("p", null, "No guess is wrong."),
    shown.length < guesses.length && h("p", { class: "hint" },
      `The ${shown.length} guesses with the most wrong images, of ${comma(guesses.length)}.`));
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
  $("mapped").parentElement.hidden = moving.length < 2;
  fill("mapped", moving.map(r => option(r, runs[r].title, shown)));
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
  reveal({ box: sides[1] - sides[0] < 0.005 ? "" : [state.map, ...sides].join(), show: "all" });
};

// ---- One image ----
const neighbours = n => found.includes(n) ? found : suspects.includes(n) ? suspects : [n];
function step(by) {
  const n = rowOf(state.image), list = neighbours(n), to = list[list.indexOf(n) + by];
  if (to !== undefined) change({ image: String(idOf(to)) }, false);
}
function curves(r, n) {  // the score of each class by epoch, that of the truth in the colour of the run
  const { epochs, title } = runs[r], y = value => 90 - 84 * value, x = epoch => 8 + 280 * along(epoch);
  const now = x(epochs[views[state.epoch].at[r]]), end = x(epochs.at(-1));
  const known = withTruth(n, [...new Set(epochs.flatMap((_, e) => data.runs[r].known(e, n)))]);
  const scores = new Map(known.map(k => [k, epochs.map((_, e) => data.runs[r].score(e, n, k))]));
  const shown = known.filter(k => k === truth[n] || Math.max(...scores.get(k)) >= 0.02);
  const points = k => scores.get(k).map((v, e) => [x(epochs[e]), y(v)]);
  let lowest = -Infinity;  // the names must not overlap
  const name = ([v, k]) => h("text", { x: end + 4, y: lowest = Math.max(lowest + 11, y(v) + 4),
    class: k === truth[n] && "truth" }, shortName(k, 8));
  const ends = shown.map(k => [scores.get(k).at(-1), k]).filter(([v]) => v >= 0.08).sort(([a], [b]) => b - a);
  return chart(340, 96, "curves", `score of each class by epoch, ${title}`, gridLine(8, 288, 90),
    h("line", { class: "ideal", x1: now, x2: now, y1: 4, y2: 90 }),
    shown.map(k => line(r, points(k), k === truth[n] ? "" : "other")), ends.map(name));
}
const exact = (r, n, k) => knownClasses(r, n).includes(k) ? h("td", null, digits(score(r, n, k)))
  : h("td", { title: "not among the best" }, "–");
function drawImage() {
  if (state.image === "") { $("image").close(); return; }
  const n = rowOf(state.image), list = neighbours(n), place = list.indexOf(n);
  fill("place", `${comma(place + 1)} of ${comma(list.length)} `, h("span", { class: "unseen" }, about(n)));
  $("before").ariaDisabled = String(place === 0);
  $("after").ariaDisabled = String(place === list.length - 1);
  $("doubt").ariaPressed = String(marks.has(String(idOf(n))));
  fill("detail", tiles && picture(n, Math.max(280, side), { role: "img", "aria-label": about(n) }),
    h("div", { class: "guesses" }, h("h2", { id: "image-title" }, `image ${idOf(n)}`,
      hasTruth && [": truth ", className(truth[n])]),
      complete && h("p", null, "margin of the label ", data.margin[n].toFixed(3).replace("-", "−"),
        ", best other class ", className(data.suggested[n])),
      h("div", null, RUNS.map(r => h("div", null, h("p", null, runName(r), " ", guessCell(r, n)),
        hasScores && past.includes(r) && curves(r, n))))),
    hasScores && h("div", { class: "scroll", tabindex: 0 },
      table("facts", ["score", ...RUNS.map(r => runName(r, "span"))],
        withTruth(n, bestClasses(n, allScores ? 10 : 10 * R)).map(k =>
          [[className(k), k === truth[n] && " (truth)"], ...RUNS.map(r => exact(r, n, k))]))));
  if (!$("image").open) $("image").showModal();
}

// ---- Drawing: a part is drawn again if what it shows has changed ----
const drawn = new Map();
function redraw(part, ...shown) {
  const key = JSON.stringify(shown), { activeElement } = document;
  if (drawn.get(part) === key) return;
  drawn.set(part, key);
  part();
  if (activeElement?.dataset.key && !activeElement.isConnected)
    (keyed(activeElement.dataset.key) ?? $("add")).focus();  // a removed filter or condition
}
const keyed = key => document.querySelector(`[data-key="${CSS.escape(key)}"]`);
function draw() {
  const { image, map, matrix, page, gallery, ...filters } = state, { epoch } = state, marked = [...marks];
  const askedMarks = /doubtful/.test(state.sort + state.query) && marked;  // else they do not change the list
  redraw(drawView, epoch);
  redraw(drawChips, epoch, state.show);
  redraw(drawTools, epoch, state.sort, state.down, state.truth, state.guess, state.group, gallery, marked);
  redraw(drawQuery, epoch, state.query, state.any);
  redraw(findImages, filters, askedMarks);
  redraw(drawFilters, filters, found.length);
  redraw(drawList, filters, page, gallery, askedMarks);
  if (hasTruth && !allScores) redraw(countPairs, epoch);
  if (hasTruth) redraw(allScores ? drawMatrix : drawPairs, epoch, matrix, state.cell);
  if (hasTruth) redraw(drawGroups, epoch);
  if (moving.length) redraw(drawMap, epoch, map, state.box);
  redraw(drawImage, image, filters, marked);
}
function drawView() {
  for (const section of document.querySelectorAll("section[data-view]"))
    section.hidden = Number(section.dataset.view) !== state.epoch;
  verdict = data.verdicts[state.epoch];
  const sample = r => h("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, line(r, [[0, 4], [26, 4]]));
  const known = r => [sample(r), runName(r, "b", cut(label(r), 12))];
  fill("runs", RUNS.map(r => h("span", { class: `run ${runClass(r)}` }, known(r))),
    h("span", { class: "hint" }, facts.about));
  $("epoch").value = state.epoch;
  $("at").value = $("epoch").ariaValueText = views[state.epoch].epoch;  // not its place, which the value is
}

// ---- Controls ----
for (const name of ["truth", "guess"])
  fill(name, option("", "any", ""), classes.map((text, k) => option(k, text)));
for (const name of ["truth", "guess", "group", "any"])
  $(name).onchange = event => change({ [name]: event.target.value });
$("mapped").onchange = event => change({ map: Number(event.target.value) });
$("sort").onchange = event => sortBy(event.target.value);
$("epoch").oninput = event => { state.epoch = Number(event.target.value); draw(); };
$("epoch").onchange = event => change({ epoch: Number(event.target.value) });
const clicks = {
  down: () => change({ down: state.down ? "" : "1" }),
  add: () => change(queryOf([...conditions(), ["id", isText(columns.id) ? "contains" : "≥", ""]])),
  gallery: () => change({ gallery: state.gallery ? "" : "1" }),
  csv: downloadList, marks: downloadMarks, close: () => $("image").close(),
  "by-margin": () => reveal({ ...clear, sort: "margin", down: "" }),
  before: () => step(-1), after: () => step(1), doubt: () => hasTruth && toggleMark(rowOf(state.image)),
  answers: ({ target: { dataset } }) => { if (dataset.view) change({ epoch: Number(dataset.view) }); },
  learned: ({ target: { dataset: { run, learned } } }) =>
    run && reveal({ ...clear, ...queryOf([[`right${run}`, "=", learned]]) }),
};
for (const [id, act] of Object.entries(clicks)) $(id).onclick = act;
$("image").onclose = () => {
  const key = `image-${state.image}`;
  if (state.image !== "") change({ image: "" });
  if (document.activeElement.dataset.key !== key) keyed(key)?.focus();  // it was opened as another image
};
const keys = { ArrowLeft: "before", ArrowRight: "after", l: "doubt", L: "doubt" };
$("image").onkeydown = event => isShortcut(event) || $(keys[event.key])?.click();
window.onhashchange = window.onstorage = () => { readMarks(); readAddress(); draw(); };
for (const place of document.querySelectorAll("[data-row]"))
  place.replaceChildren(opener(Number(place.dataset.row), 48));
oneTabStop($("suspects"));
window.onhashchange();
document.documentElement.dataset.ready = "yes";
