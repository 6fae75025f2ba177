/** What an answer points at: boxes, quadrilaterals, points and actions, in thousandths of the image. */

import { type Action, findActions, type Place, placesOf } from "./actions.ts";

export type Shape =
  | { kind: "box"; x1: number; y1: number; x2: number; y2: number }
  | { kind: "quad"; corners: Place[] }
  | { kind: "point"; at: Place }
  | { kind: "action"; places: Place[] };

export interface Mark {
  /** What is pointed at, in the answer's words; empty if it gives none. */
  label: string;
  shapes: Shape[];
  /** The characters of the answer that the mark is read from. */
  source: string;
  action: Action | null;
}

/** A text in which each mark is replaced by a place holder. */
export interface MarkedText {
  text: string;
  marks: Mark[];
}

// Characters for private use, of which none is a digit or a letter to Markdown or to a programming language.
const [OPEN, FIRST, LAST, CLOSE] = [0xe000, 0xe100, 0xf000, 0xe001];
const EDGES = /[\ue000\ue001]/g;
const PLACEHOLDER = /\ue000([\ue100-\uf000])\ue001/;

/** The text between place holders and, at every second position, the number of the mark that stands there. */
export function split(text: string): (string | number)[] {
  return text.split(PLACEHOLDER).map((piece, index) => (index % 2 ? piece.charCodeAt(0) - FIRST : piece));
}

/** Whether an address has a place holder. */
export function hasMark(address: string): boolean {
  return address.includes(encodeURI(String.fromCharCode(OPEN)));
}

const TAGGED = "(?:<ref>(?<label>[^<]*)</ref>\\s*)?<(?<kind>box|quad|point)>(?<tagged>[^<]{0,4000})</\\k<kind>>";
const NUMBERS = /(?<![\w\])])\[\[\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*\](?:\s*,\s*\[[\d\s,.]+\])*\s*\]/;
const MARK = new RegExp(`${TAGGED}|(?:<ref>(?<bareLabel>[^<]*)</ref>\\s*)?(?<bare>${NUMBERS.source})`, "g");

/** The marks of an answer, and its text without them. `bare` also takes [[x1, y1, x2, y2]] without tags. */
export function findMarks(answer: string, bare = true): MarkedText {
  const text = answer.replace(EDGES, "");
  const marks: Mark[] = [];
  const put = (mark: Mark): string => {
    if (FIRST + marks.length > LAST) return mark.source;
    return String.fromCharCode(OPEN, FIRST + marks.push(mark) - 1, CLOSE);
  };
  const tagged = text.replace(bare ? MARK : new RegExp(TAGGED, "g"), (source: string, ...rest: unknown[]) => {
    const found = rest.at(-1) as Partial<Record<"label" | "kind" | "tagged" | "bareLabel" | "bare", string>>;
    const shapes = shapesOf(found.kind ?? "box", found.tagged ?? found.bare ?? "");
    const label = (found.label ?? found.bareLabel ?? "").trim();
    return shapes.length ? put({ label, shapes, source, action: null }) : source;
  });
  return { text: withoutActions(tagged, put), marks };
}

function withoutActions(text: string, put: (mark: Mark) => string): string {
  let result = "";
  let end = 0;
  for (const found of findActions(text)) {
    const places = placesOf(found.action);
    const source = text.slice(found.start, found.end);
    const shapes: Shape[] = places.length ? [{ kind: "action", places }] : [];
    result += text.slice(end, found.start) + put({ label: "", shapes, source, action: found.action });
    end = found.end;
  }
  return result + text.slice(end);
}

function shapesOf(kind: string, text: string): Shape[] {
  if (/[^\d\s.,;[\]()-]/.test(text)) return [];
  const numbers = (text.match(/-?\d+(?:\.\d+)?/g) ?? []).map(Number);
  const each = { box: 4, quad: 8, point: 2 }[kind] ?? 4;
  const groups = Array.from({ length: numbers.length / each }, (_, i) => numbers.slice(i * each, (i + 1) * each));
  const isWhole = numbers.length > 0 && numbers.length % each === 0;
  const scaled = groups.map(scale);
  return isWhole && scaled.flat().every((n) => n >= 0 && n <= 1000) ? scaled.map((group) => shape(kind, group)) : [];
}

/** Fractions become thousandths. As in the official evaluation, four numbers that add up to less than 4 are fractions. */
function scale(group: number[]): number[] {
  const sum = group.reduce((a, b) => a + b, 0);
  return sum < group.length && group.every((n) => n <= 1) ? group.map((n) => n * 1000) : group;
}

function shape(kind: string, group: number[]): Shape {
  const [x1 = 0, y1 = 0, x2 = 0, y2 = 0] = group;
  if (kind === "point") return { kind: "point", at: { x: x1, y: y1 } };
  if (kind === "quad") return { kind: "quad", corners: [0, 2, 4, 6].map((i) => ({ x: group[i]!, y: group[i + 1]! })) };
  const [left, right] = [Math.min(x1, x2), Math.max(x1, x2)];
  return { kind: "box", x1: left, x2: right, y1: Math.min(y1, y2), y2: Math.max(y1, y2) };
}

/** The text without a mark at its end that is still being written. */
export function withoutUnfinished(text: string): string {
  return text.replace(/<(?:r|re|ref(?:>[^<]*)?|\/r|\/re|\/ref|b|bo|box(?:>[^<]*)?|q|qu|qua|quad(?:>[^<]*)?|p|po|poi|poin|point(?:>[^<]*)?)?$/, "");
}
