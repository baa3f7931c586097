// JSON on lines of its own, also while it is still being written: what has come is laid out, and
// nothing is parsed, so that numbers and broken text keep their spelling.

const INDENT = "  ";
// A string, also an unfinished one; a mark of structure; or anything else up to the next of these.
const TOKEN = /"(?:[^"\\]|\\[^])*(?:"|\\?$)|[{}[\],:]|\s+|[^"{}[\],:\s]+/g;

/** Return an object or a list as text with one value a line, anything else as it is. */
export function layOut(json) {
  if (!/^\s*[{[]/.test(json)) return json;
  const tokens = (json.match(TOKEN) ?? []).filter((token) => token.trim());
  let depth = 0;
  let laidOut = "";
  tokens.forEach((token, i) => {
    const closes = "}]".includes(token);
    const isEmpty = closes && "{[".includes(tokens[i - 1] ?? " ");
    if (closes) depth = Math.max(0, depth - 1);
    if (closes && !isEmpty) laidOut += newLine(depth);
    laidOut += token === ":" ? ": " : token;
    if ("{[".includes(token)) depth += 1;
    const next = tokens[i + 1];
    if ("{[,".includes(token) && next && !"}]".includes(next)) laidOut += newLine(depth);
  });
  return laidOut;
}

function newLine(depth) {
  return `\n${INDENT.repeat(depth)}`;
}
