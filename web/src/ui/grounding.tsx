/** What an answer points at, drawn on the picture. */

import { useState } from "preact/hooks";
import type { Place } from "../answer/actions.ts";
import type { Mark, Shape } from "../answer/marks.ts";
import type { Picture } from "../images/pictures.ts";
import { nameOf, PictureImage } from "./picture.tsx";
import { pointed } from "./state.ts";

/** The marks of an answer on one of its pictures, the last of which are the likeliest. */
export function Grounding(props: { turnId: string; marks: Mark[]; pictures: Picture[]; first: number }) {
  const [index, setIndex] = useState(props.first);
  const picture = props.pictures[Math.min(index, props.pictures.length - 1)];
  const drawn = props.marks.map((mark, number) => ({ mark, number })).filter(({ mark }) => mark.shapes.length);
  if (!picture || !drawn.length) return null;
  const isBlank = picture.kind === "remote" || !picture.width;
  return (
    <figure class="grounding">
      {props.pictures.length > 1 && <Choice pictures={props.pictures} index={index} onChoose={setIndex} />}
      <div class={`grounding-picture ${isBlank ? "is-blank" : ""}`}>
        <PictureImage picture={picture} alt={`${nameOf(picture)}, with ${drawn.length} marked`} />
        <Outlines turnId={props.turnId} drawn={drawn} />
        {drawn.map(({ mark, number }) => (
          <Tags key={number} id={`${props.turnId}:${number}`} mark={mark} number={number} />
        ))}
      </div>
    </figure>
  );
}

function Choice(props: { pictures: Picture[]; index: number; onChoose: (index: number) => void }) {
  return (
    <div class="segments" role="group" aria-label="The picture that the marks are drawn on">
      {props.pictures.map((_, index) => (
        <button type="button" key={index} aria-pressed={index === props.index} onClick={() => props.onChoose(index)}>
          Image {index + 1}
        </button>
      ))}
    </div>
  );
}

function Outlines({ turnId, drawn }: { turnId: string; drawn: { mark: Mark; number: number }[] }) {
  return (
    <svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">
      {drawn.map(({ mark, number }) => {
        const id = `${turnId}:${number}`;
        return (
          <g
            key={number}
            data-mark={number}
            class={pointed.value === id ? "outline is-pointed" : "outline"}
            onPointerEnter={() => (pointed.value = id)}
            onPointerLeave={() => (pointed.value = "")}
          >
            {mark.shapes.map(outline)}
          </g>
        );
      })}
    </svg>
  );
}

function outline(shape: Shape) {
  if (shape.kind === "point") return null;
  if (shape.kind === "action") return shape.places.length === 2 ? <polyline points={corners(shape.places)} /> : null;
  if (shape.kind === "quad") return [<polygon class="casing" points={corners(shape.corners)} />, <polygon points={corners(shape.corners)} />];
  const box = { x: shape.x1, y: shape.y1, width: shape.x2 - shape.x1, height: shape.y2 - shape.y1 };
  return [<rect class="casing" {...box} />, <rect {...box} />];
}

function corners(places: Place[]): string {
  return places.map(({ x, y }) => `${x},${y}`).join(" ");
}

function Tags({ id, mark, number }: { id: string; mark: Mark; number: number }) {
  return (
    <>
      {mark.shapes.flatMap((shape) =>
        tagPlaces(shape).map(({ kind, at }, index) => (
          <span
            key={`${shape.kind}${at.x},${at.y},${index}`}
            class={`tag tag-${kind} ${pointed.value === id ? "is-pointed" : ""}`}
            style={{ left: `${at.x / 10}%`, top: `${at.y / 10}%` }}
            aria-hidden="true"
          >
            {kind === "cursor" ? <Cursor /> : kind === "label" ? mark.label || String(number + 1) : null}
          </span>
        )),
      )}
    </>
  );
}

function tagPlaces(shape: Shape): { kind: "label" | "dot" | "cursor"; at: Place }[] {
  if (shape.kind === "box") return [{ kind: "label", at: { x: shape.x1, y: shape.y1 } }];
  if (shape.kind === "quad") return [{ kind: "label", at: shape.corners[0]! }];
  if (shape.kind === "point") return [{ kind: "dot", at: shape.at }, { kind: "label", at: shape.at }];
  const [start, end] = [shape.places[0]!, shape.places.at(-1)!];
  return shape.places.length === 2 ? [{ kind: "dot", at: start }, { kind: "cursor", at: end }] : [{ kind: "cursor", at: end }];
}

function Cursor() {
  return (
    <svg class="cursor" viewBox="0 0 24 24">
      <path d="M3 2l7.500 19 2.800-7.700L21 10.500z" />
    </svg>
  );
}
