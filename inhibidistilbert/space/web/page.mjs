// What is seen: the text, the answer, the words in colours, and the picture of inhibition.

const MOST_NUMBERS = 12; // words of a matrix whose cells show their numbers
// A module of one SIMD instruction.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
const at = (id) => document.getElementById(id);
let settings = null;
let asked = 0;
let shown = null;
let kept = false;

function missing() {
  if (typeof WebAssembly !== "object") return "WebAssembly";
  if (!WebAssembly.validate(new Uint8Array(SIMD))) return "WebAssembly with SIMD";
  return typeof DecompressionStream === "undefined" ? "DecompressionStream" : null;
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = false;
  at("status").textContent = "";
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

function start() {
  const lacking = missing();
  if (lacking) {
    tell(`This browser has no ${lacking}, which the model needs to run here. Chrome and Edge have it from version 91, Firefox from 114, Safari from 16.4.`);
    return;
  }
  const worker = new Worker("model.mjs", { type: "module" });
  worker.onerror = (event) => tell(`The model did not start: ${event.message ?? "its files did not come"}. Load the page again.`);
  worker.onmessage = ({ data }) => {
    if (data.kind === "problem") tell(`The model did not run: ${data.message}. Load the page again.`);
    else if (data.kind === "ready") ready(data.settings);
    else if (data.number === asked) show(data);
  };
  const ask = () => worker.postMessage({ number: ++asked, text: at("text").value });
  at("text").addEventListener("input", ask);
  for (const button of at("examples").children)
    button.addEventListener("click", () => { at("text").value = button.textContent; ask(); });
  for (const id of ["layer", "head"]) at(id).addEventListener("change", showMatrix);
  ask();
}

function ready(found) {
  settings = found;
  at("model").textContent = settings.model;
  at("gate").hidden = !settings.gate;
  for (const [id, count, chosen] of [["layer", settings.layers, settings.layers - 1], ["head", settings.heads, 0]]) {
    at(id).replaceChildren(...Array.from({ length: count }, (_, number) => make("option", { textContent: number, value: number })));
    at(id).value = chosen;
  }
}

function show(data) {
  at("result").hidden = data.kind === "nothing";
  at("status").textContent = data.kind === "nothing" ? "Type a sentence." : "";
  if (data.kind === "answer") {
    shown = data;
    at("label").textContent = settings.labels[data.label];
    at("score").value = data.scores[data.label];
    at("score").textContent = data.scores[data.label].toFixed(3);
    at("cut").hidden = data.tokens <= settings.most_tokens;
    at("cut").textContent = `The text has ${data.tokens} tokens; this page reads the first ${settings.most_tokens}.`;
    showWords(null);
    showMatrix();
  }
  if (data.kind === "effects") {
    showWords(data.effects);
    keepForOffline(); // now, when it takes nothing from the first answer
  }
}

// The text as it was typed; without effects yet, without colours.
function showWords(effects) {
  const strongest = effects ? Math.max(...effects.map(Math.abs)) || 1 : 1;
  const pieces = [];
  let end = 0;
  for (const [number, word] of shown.words.entries()) {
    pieces.push(shown.text.slice(end, word.start));
    const mark = make("mark", { textContent: shown.text.slice(word.start, word.end) });
    if (effects) {
      const effect = effects[number];
      mark.className = effect < 0 ? "against" : "for";
      mark.dataset.effect = effect;
      mark.title = signed(effect);
      mark.style.setProperty("--part", Math.abs(effect) / strongest);
      mark.append(make("span", { className: "unseen", textContent: ` (${signed(effect)})` }));
    }
    pieces.push(mark);
    end = word.end;
  }
  at("words").replaceChildren(...pieces, shown.text.slice(end));
  at("words").dataset.complete = effects !== null;
}

function showMatrix() {
  const scores = shown.inhibition[at("layer").value][at("head").value];
  const names = [settings.first, ...shown.words.map(({ start, end }) => shown.text.slice(start, end)), settings.last];
  const fullest = Math.max(...scores.flat().map(Math.abs));
  const heads = names.map((name) => make("th", { scope: "col", title: name }, make("span", { textContent: name })));
  const rows = scores.map((row, number) => make("tr", {}, make("th", { scope: "row", title: names[number], textContent: names[number] }),
    ...row.map((score, column) => cell(score, fullest, `${names[number]} reads ${names[column]}: ${score.toFixed(2)}`, names.length <= MOST_NUMBERS))));
  at("first").textContent = settings.first;
  at("fullest").value = fullest;
  at("fullest").textContent = fullest.toFixed(2);
  at("matrix").replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "reads ↓ from →" }), ...heads)), make("tbody", {}, ...rows)));
}

function cell(score, fullest, title, withNumber) {
  const found = make("td", { className: score < 0 ? "below" : "above", title, textContent: withNumber ? score.toFixed(2) : "" });
  found.style.setProperty("--part", Math.abs(score) / (fullest || 1));
  found.dataset.z = score;
  return found;
}

async function keepForOffline() {
  if (kept || !("serviceWorker" in navigator)) return;
  kept = true;
  try {
    await navigator.serviceWorker.register("offline.js");
    await navigator.serviceWorker.ready;
    at("offline").textContent = "The page works without a network now.";
  } catch {
    // Inside another site's page a browser may forbid it: then the page needs the network each time.
  }
}

start();
