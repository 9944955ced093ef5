// A text as the model reads it: its tokens, and the words that they are pieces of.

// As BERT's tokenizers part a text: at white space, and around each sign and each Chinese character.
const CHUNK = /[\S\uFEFF]+/gu;
const PART = /[\p{P}$+<=>^`|~]|\p{Script=Han}|(?:(?![\p{P}$+<=>^`|~]|\p{Script=Han}).)+/gsu;

// The ids of at most `most` tokens; the words with the places of their first token and of the one behind their last.
export function read(text, tokenizer, prefix, most) {
  const [first, last] = tokenizer.encode("").ids;
  const ids = [first];
  const words = [];
  for (const { 0: chunk, index } of text.matchAll(CHUNK)) {
    const encoded = tokenizer.encode(chunk, { add_special_tokens: false });
    const groups = grouped(encoded.tokens, prefix);
    const parts = [...chunk.matchAll(PART)];
    // Where the two do not tell the same words apart, all of the chunk counts as one.
    const aligned = parts.length === groups.length;
    const known = aligned ? groups : [{ begin: 0, end: encoded.tokens.length }];
    for (const [number, { begin, end }] of known.entries()) {
      const start = index + (aligned ? parts[number].index : 0);
      const length = aligned ? parts[number][0].length : chunk.length;
      const stop = Math.min(ids.length + end, most - 1);
      if (ids.length + begin < stop) words.push({ start, end: start + length, begin: ids.length + begin, stop });
    }
    ids.push(...encoded.ids);
  }
  const tokens = ids.length + 1;
  return { ids: [...ids.slice(0, most - 1), last], words, tokens };
}

// Where each word of a list of pieces begins and ends.
function grouped(tokens, prefix) {
  const groups = [];
  for (const [place, token] of tokens.entries()) {
    if (place === 0 || !token.startsWith(prefix)) groups.push({ begin: place, end: place });
    groups.at(-1).end = place + 1;
  }
  return groups;
}
