/** JSON made readable without changing a character of its values. */

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

/** JSON on several lines; null if the text is none. Numbers keep their digits, and names may occur twice. */
export function pretty(text: string): string | null {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null) return null;
  } catch {
    return null;
  }
  return indented(text.match(TOKEN) ?? []);
}

function indented(tokens: string[]): string {
  let result = "";
  let depth = 0;
  tokens.forEach((token, index) => {
    const next = tokens[index + 1] ?? "";
    const line = () => "\n" + "  ".repeat(depth);
    if ("{[".includes(token)) {
      const isEmpty = "]}".includes(next);
      depth++;
      result += token + (isEmpty ? "" : line());
    } else if ("]}".includes(token)) {
      depth--;
      result += ("{[".includes(tokens[index - 1] ?? "") ? "" : line()) + token;
    } else {
      result += token === "," ? token + line() : token === ":" ? ": " : token;
    }
  });
  return result;
}
