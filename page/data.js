// The data that arrays.py writes. Images are rows n, runs r, epochs e (places in a run's list), classes k.
delete document.documentElement.dataset.ready;  // a saved copy has it
const facts = JSON.parse($("facts").textContent);
const { count, classes, runs, views, tiles, hasTruth, hasScores, complete, verdicts: VERDICTS } = facts;
const range = length => Array.from({ length }, (_, i) => i);
const allScores = !facts.widths.length;  // else each image has those of its best classes
const R = runs.length, K = classes.length, RUNS = range(R), CLASSES = range(K);
const FEW = K <= 12;  // classes: each has a bar in the list

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
  const classNumbers = length => gather(length, Uint16Array);
  const Exact = facts.digits > 9 ? Float64Array : Float32Array;
  const readAllScores = ({ epochs, exact }) => {
    const others = epochs.length - 1;
    const rounded = take(count * K * others);  // whole percents, (count, K, others)
    const scores = gather(count * K, Exact);
    const score = (e, n, k) => e === exact ? scores[n * K + k]
      : rounded[(n * K + k) * others + e - (e > exact)] / 100;
    return { score, known: () => CLASSES };
  };
  const readBestScores = ({ exact }, r, guess) => {
    const classesOf = [], scores = [];  // of each epoch, (width, count)
    facts.widths[r].forEach(([, width], e) => {
      classesOf.push(classNumbers(width * count));
      for (let n = 0; n < count; n++) classesOf[e][n] ^= guess[e][n];
      scores.push(e === exact ? gather(width * count, Exact) : take(width * count));
    });
    const score = (e, n, k) => {
      const known = classesOf[e];
      for (let i = n; i < known.length; i += count)
        if (known[i] === k) return scores[e][i] / (e === exact ? 1 : 100);
      return 0;
    };
    const first = (e, n, width) => range(width).map(i => classesOf[e][i * count + n]).filter(k => k < K);
    return { score, best: (e, n) => first(e, n, facts.widths[r][e][0]),
      known: (e, n) => first(e, n, facts.widths[r][e][1]) };
  };
  const readRun = (run, r) => {
    const guess = run.epochs.map(() => classNumbers(count));
    const scores = (allScores ? readAllScores : readBestScores)(run, r, guess);
    const [mean, spread] = [0, 1].map(() => gather(count, Uint16Array)), ofTruth = [];
    const truthScore = e => ofTruth[e] ??= Float64Array.from(truth, (k, n) => scores.score(e, n, k));
    return { guess, ...scores, truthScore, mean, spread, learned: take(count), forgotten: take(count) };
  };
  const truth = classNumbers(count);
  return { truth, suggested: classNumbers(count), margin: gather(count, Float32Array),
    verdicts: views.map(() => take(count)), runs: runs.map(readRun) };
}
const stream = new Blob([decode($("arrays"))]).stream().pipeThrough(new DecompressionStream("deflate"));
const past = RUNS.filter(r => runs[r].title && runs[r].epochs.length > 1);  // a run directory counts once
const moving = complete ? past : [];
const data = unpack(new Uint8Array(await new Response(stream).arrayBuffer()));
const { truth } = data;  // 65535 if it is unknown
const rules = new CSSStyleSheet();
document.querySelectorAll("script.sheet").forEach((script, i) => {
  const url = URL.createObjectURL(new Blob([decode(script)], { type: "image/webp" }));
  rules.insertRule(`.sheet${i} { background-image: url("${url}") }`);
});
document.adoptedStyleSheets = [rules];
const isSuspect = n => complete && data.margin[n] < 0;
const suspects = range(count).filter(isSuspect).sort((a, b) => data.margin[a] - data.margin[b]);

