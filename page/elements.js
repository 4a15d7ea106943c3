// Elements of the page. Text is set as text, so that names from files are never read as HTML.
const $ = id => document.getElementById(id);
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
const counted = number => `${comma(number)} image${number === 1 ? "" : "s"}`;
const option = (value, text, now) => h("option", { value, selected: String(now) === String(value) }, text);
const breakable = label => label.split(/(?=@\d+$)/).flatMap((part, i) => i ? [h("wbr"), part] : part);
const runClass = r => `r${r % 6}`;
const button = (key, text, onclick, more) =>
  h("button", { type: "button", "data-key": key, onclick, ...more }, text);
const chart = (width, height, kind, name, ...parts) =>
  h("svg", { viewBox: `0 0 ${width} ${height}`, class: kind, role: "img", "aria-label": name }, parts);
const gridLine = (x1, x2, y) => h("line", { class: "grid", x1, x2, y1: y, y2: y });
const line = (r, points, kind = "") => h("polyline", { class: `${runClass(r)} ${kind}`,
  points: points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ") });
const table = (kind, heads, rows) => h("table", { class: kind },
  h("thead", null, h("tr", null, heads.map(head => h("th", { scope: "col" }, head)))),
  h("tbody", null, rows.map(([head, ...cells]) => h("tr", null, h("th", { scope: "row" }, head), cells))));

const isShortcut = event => event.ctrlKey || event.altKey || event.metaKey;  // of the browser: Ctrl+L, Alt+←
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
    if (isShortcut(event) || !ahead.length) return;
    event.preventDefault();
    const [, to] = ahead.reduce((a, b) => b[0] < a[0] ? b : a);
    oneTabStop(group, to);
    to.focus();
  };
  return group;
}
