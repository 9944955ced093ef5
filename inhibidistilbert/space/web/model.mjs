// The worker: loads the model, and answers the newest text. Typing goes on meanwhile.

import * as ort from "./vendor/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./vendor/tokenizers.min.mjs";
import { read } from "./words.mjs";

const TOKENS_A_RUN = 512;
let waiting = null;
let busy = false;
const loading = load();
loading.then(({ settings }) => postMessage({ kind: "ready", settings }), failed);

onmessage = async ({ data }) => {
  waiting = data;
  if (busy) return;
  busy = true;
  try {
    const model = await loading;
    while (waiting) {
      const asked = waiting;
      waiting = null;
      await answer(model, asked);
    }
  } catch (error) {
    failed(error);
  } finally {
    busy = false;
  }
};

function failed(error) {
  postMessage({ kind: "problem", message: `${error.message ?? error}` });
}

async function load() {
  const [settings, tokenizer, config, graph, wasm] = await Promise.all([
    json("settings.json"), json("tokenizer.json"), json("tokenizer_config.json"),
    bytes("model.onnx"), bytes("vendor/ort-wasm-simd-threaded.wasm.gz").then(unpacked),
  ]);
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  ort.env.wasm.wasmBinary = wasm;
  // The graph is as its builder optimized it: to do so again takes a second.
  const creating = ort.InferenceSession.create(graph, { executionProviders: ["wasm"], graphOptimizationLevel: "disabled" });
  const made = new Tokenizer(tokenizer, config); // while WebAssembly compiles
  return { settings, session: await creating, tokenizer: made };
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} did not come: the host answered ${response.status}`);
  return response;
}

async function json(name) {
  return (await fetched(name)).json();
}

async function bytes(name) {
  return new Uint8Array(await (await fetched(name)).arrayBuffer());
}

// Some hosts unpack a file on the way.
async function unpacked(data) {
  if (data[0] !== 0x1f || data[1] !== 0x8b) return data;
  return new Uint8Array(await new Response(new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

async function answer({ settings, session, tokenizer }, { number, text }) {
  const { ids, words, tokens } = read(text, tokenizer, settings.prefix, settings.most_tokens);
  if (!words.length) return postMessage({ kind: "nothing", number });
  const whole = await run(session, ids, [[]]);
  const [scores] = whole.scores;
  const label = scores.indexOf(Math.max(...scores));
  const inhibition = betweenWords(whole.inhibition, ids.length, words);
  postMessage({ kind: "answer", number, text, label, scores, ids, words, tokens, inhibition });
  const effects = [];
  const rows = Math.max(1, Math.floor(TOKENS_A_RUN / ids.length));
  while (effects.length < words.length) {
    await new Promise((resolve) => setTimeout(resolve)); // a newer text may have come
    if (waiting) return;
    const { scores: without } = await run(session, ids, words.slice(effects.length, effects.length + rows).map((word) => [word]));
    effects.push(...without.map((row) => scores[label] - row[label]));
  }
  postMessage({ kind: "effects", number, effects });
}

// For each list of words the labels' probabilities without them: a hidden word is masked as padding is.
// Z is that of the first list.
async function run(session, ids, hidden) {
  const shape = [hidden.length, ids.length];
  const masks = hidden.flatMap((words) => ids.map((_, place) => (words.some(({ begin, stop }) => begin <= place && place < stop) ? 0n : 1n)));
  const found = await session.run({
    input_ids: new ort.Tensor("int64", hidden.flatMap(() => ids.map(BigInt)), shape),
    attention_mask: new ort.Tensor("int64", masks, shape),
  });
  const labels = found.logits.dims[1];
  const rows = hidden.map((_, row) => softmax([...found.logits.data.subarray(row * labels, (row + 1) * labels)]));
  return { scores: rows, inhibition: found.inhibition };
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

// Z by layer, head, word that reads and word that is read; the special tokens stand around the words.
// Between words of several pieces it is the mean.
function betweenWords({ data, dims: [layers, heads] }, length, words) {
  const spans = [{ begin: 0, stop: 1 }, ...words, { begin: length - 1, stop: length }];
  return Array.from({ length: layers }, (_, layer) => Array.from({ length: heads }, (_, head) => {
    const offset = (layer * heads + head) * length * length;
    return spans.map((reader) => spans.map((from) => {
      let sum = 0;
      for (let row = reader.begin; row < reader.stop; row++)
        for (let column = from.begin; column < from.stop; column++) sum += data[offset + row * length + column];
      return sum / ((reader.stop - reader.begin) * (from.stop - from.begin));
    }));
  }));
}
