/** GUI actions such as pyautogui.click(x=0.2346, y=0.381): read as text, never run. */

export type Value = string | number | boolean | null | Value[];

export interface Action {
  /** Such as pyautogui.click. */
  name: string;
  values: Value[];
  named: Record<string, Value>;
}

export interface FoundAction {
  action: Action;
  start: number;
  end: number;
}

const NAME = /\b(?:pyautogui|mobile|browser)\.([A-Za-z_]\w*)\s*\(/g;

/** The actions in a text, in order. What does not read as a call with plain values is none. */
export function findActions(text: string): FoundAction[] {
  const found: FoundAction[] = [];
  for (const match of text.matchAll(NAME)) {
    const reader = new Reader(text, match.index + match[0].length);
    const name = match[0].slice(0, -1).trim();
    try {
      const action = readAction(reader, name);
      if (match.index >= (found.at(-1)?.end ?? 0)) found.push({ action, start: match.index, end: reader.at });
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }
  return found;
}

function readAction(reader: Reader, name: string): Action {
  const action: Action = { name, values: [], named: Object.create(null) as Record<string, Value> };
  while (!reader.takes(")")) {
    const parameter = reader.parameter();
    const value = reader.value();
    if (parameter) action.named[parameter] = value;
    else action.values.push(value);
    if (!reader.takes(",") && !reader.sees(")")) throw new SyntaxError("a comma is missing");
  }
  return action;
}

/** Reads the literals of Python that actions have: numbers, strings, lists and tuples of them. */
class Reader {
  constructor(private readonly text: string, public at: number) {}

  sees(character: string): boolean {
    while (/\s/.test(this.text[this.at] ?? "")) this.at++;
    return this.text[this.at] === character;
  }

  takes(character: string): boolean {
    const seen = this.sees(character);
    if (seen) this.at++;
    return seen;
  }

  parameter(): string | null {
    return this.match(/\s*([A-Za-z_]\w*)\s*=(?!=)/y)?.[1] ?? null;
  }

  value(): Value {
    if (this.takes("[")) return this.list("]");
    if (this.takes("(")) return this.list(")");
    const number = this.match(/\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?![\w.])/y);
    if (number) return Number(number[1]);
    const word = this.match(/\s*(True|False|None)\b/y);
    if (word) return word[1] === "None" ? null : word[1] === "True";
    return this.string();
  }

  private list(end: string): Value[] {
    const values: Value[] = [];
    while (!this.takes(end)) {
      values.push(this.value());
      if (!this.takes(",") && !this.sees(end)) throw new SyntaxError("a comma is missing");
    }
    return values;
  }

  private string(): string {
    const match = this.match(/\s*(?:"((?:[^"\\\n]|\\.)*)"|'((?:[^'\\\n]|\\.)*)')/y);
    if (!match) throw new SyntaxError("no value");
    return (match[1] ?? match[2] ?? "").replace(/\\(.)/g, (_, each: string) => ({ n: "\n", t: "\t" })[each] ?? each);
  }

  private match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.at;
    const match = pattern.exec(this.text);
    if (match) this.at = pattern.lastIndex;
    return match;
  }
}

export interface Place {
  /** Thousandths of the image's width and height. */
  x: number;
  y: number;
}

/** Where an action happens: no place, one, or a start and an end. */
export function placesOf(action: Action): Place[] {
  const from = pair(action.named["from_coord"]);
  const to = pair(action.named["to_coord"]);
  if (from && to) return [from, to];
  const [x, y] = [action.named["x"] ?? action.values[0], action.named["y"] ?? action.values[1]];
  const place = pair([x ?? null, y ?? null]) ?? pair(action.values[0]);
  return place ? [place] : [];
}

/** Fractions from 0 to 1, the official form, or thousandths; null for anything else. */
function pair(value: Value | undefined): Place | null {
  if (!Array.isArray(value) || value.length !== 2) return null;
  const [x, y] = value;
  if (typeof x !== "number" || typeof y !== "number" || x < 0 || y < 0 || x > 1000 || y > 1000) return null;
  return x <= 1 && y <= 1 ? { x: x * 1000, y: y * 1000 } : { x, y };
}
