/** The turns of a conversation. */

import { memo } from "preact/compat";
import { useEffect, useRef, useState } from "preact/hooks";
import { send } from "../conversation/answering.ts";
import { current, update } from "../conversation/store.ts";
import { children, path, stepped } from "../conversation/tree.ts";
import type { AnyTurn, ToolTurn, UserTurn } from "../conversation/types.ts";
import { AnswerView } from "./answer.tsx";
import { Results } from "./calls.tsx";
import { IconButton } from "./icons.tsx";
import { Thumbnail } from "./picture.tsx";
import { copy } from "./state.ts";
import { Welcome } from "./welcome.tsx";

/** How near the end a reader must be for the page to follow an answer. */
const NEAR = 120;

/** How long the page follows after the last change of an answer, whose picture is still being decoded. */
const SETTLING = 1500;

export function Turns() {
  const conversation = current.value;
  const shown = path(conversation);
  const root = useFollowing(conversation.id, shown);
  return (
    <div class="turns" ref={root}>
      <div class="column" role="log" aria-live="off" aria-label="Conversation" tabIndex={0}>
        {shown.length ? <h1 class="said-only">{conversation.title}</h1> : <Welcome />}
        {shown.map((turn, index) => {
          const beside = children(conversation, turn.parent);
          const position = `${beside.findIndex((each) => each.id === turn.id) + 1}/${beside.length}`;
          const isLast = index === shown.length - 1;
          return <TurnView key={turn.id} turn={turn} position={position} isLast={isLast} id={conversation.id} />;
        })}
      </div>
    </div>
  );
}

/** Keeps the end in view while an answer grows, unless the reader has scrolled away from it. */
function useFollowing(id: string, shown: AnyTurn[]) {
  const root = useRef<HTMLDivElement>(null);
  const isNear = useRef(true);
  const until = useRef(0);
  useEffect(() => {
    until.current = Date.now() + SETTLING;
  }, [shown.at(-1)]);
  useEffect(() => {
    const element = root.current!;
    let last = 0;
    const onScroll = () => {
      const isUp = element.scrollTop < last;
      last = element.scrollTop;
      const isAtEnd = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
      // The end also moves away by itself, when an answer grows; only a reader moves up.
      if (isUp || isAtEnd) isNear.current = isAtEnd;
    };
    element.addEventListener("scroll", onScroll, { passive: true });
    return () => element.removeEventListener("scroll", onScroll);
  }, []);
  useEffect(() => {
    isNear.current = shown.length > 0;
    const element = root.current!;
    const follow = () => {
      if (isNear.current && Date.now() < until.current) element.scrollTop = element.scrollHeight;
    };
    const observer = new ResizeObserver(follow);
    observer.observe(element.firstElementChild!);
    return () => observer.disconnect();
  }, [id, shown.length]);
  return root;
}

interface TurnProps {
  id: string;
  turn: AnyTurn;
  /** Such as 2/3: the second of three turns that follow the same one. */
  position: string;
  isLast: boolean;
}

const TurnView = memo((props: TurnProps) => {
  const { id, turn, position, isLast } = props;
  const versions = <Versions id={id} turn={turn} position={position} />;
  if (turn.role === "user") return <UserView id={id} turn={turn} versions={versions} />;
  if (turn.role === "tool") return <ToolView turn={turn} />;
  return <AnswerView id={id} turn={turn} isLast={isLast} versions={versions} />;
}, sameTurn);

function sameTurn(a: TurnProps, b: TurnProps): boolean {
  return a.turn === b.turn && a.position === b.position && a.isLast === b.isLast && a.id === b.id;
}

function Versions({ id, turn, position }: { id: string; turn: AnyTurn; position: string }) {
  if (position.endsWith("/1")) return null;
  const [number, count] = position.split("/").map(Number) as [number, number];
  const step = (by: number) => update(id, (before) => stepped(before, turn, by));
  return (
    <span class="versions">
      <IconButton icon="left" name="Version before" disabled={number === 1} onClick={() => step(-1)} />
      <span>{position}</span>
      <IconButton icon="right" name="Version after" disabled={number === count} onClick={() => step(1)} />
    </span>
  );
}

function UserView({ id, turn, versions }: { id: string; turn: UserTurn; versions: preact.ComponentChildren }) {
  const [isEdited, setEdited] = useState(false);
  const done = (text: string | null) => {
    setEdited(false);
    if (text !== null) send(id, turn.parent, text, turn.pictures);
  };
  return (
    <article class="turn user" aria-label="You">
      {turn.pictures.length > 0 && (
        <div class="thumbnails">
          {turn.pictures.map((picture) => (
            <Thumbnail key={picture.id} picture={picture} />
          ))}
        </div>
      )}
      {isEdited ? <Editor turn={turn} onDone={done} /> : turn.text && <p class="said" dir="auto">{turn.text}</p>}
      <div class="turn-actions">
        {versions}
        <IconButton icon="edit" name="Edit and ask again" onClick={() => setEdited(true)} />
        <IconButton icon="copy" name="Copy" onClick={() => void copy(turn.text)} />
      </div>
    </article>
  );
}

function Editor({ turn, onDone }: { turn: UserTurn; onDone: (text: string | null) => void }) {
  const [text, setText] = useState(turn.text);
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => area.current?.focus(), []);
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Escape") onDone(null);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onDone(text);
  };
  return (
    <div class="editor" onKeyDown={onKeyDown}>
      <textarea
        ref={area}
        aria-label="Your message, changed"
        rows={3}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
      />
      <div class="row">
        <button type="button" class="button" onClick={() => onDone(null)}>
          Cancel
        </button>
        <button type="button" class="button primary" onClick={() => onDone(text)}>
          Ask again
        </button>
      </div>
    </div>
  );
}

function ToolView({ turn }: { turn: ToolTurn }) {
  return (
    <article class="turn tool" aria-label="Results of calls">
      <Results results={turn.results} />
    </article>
  );
}
