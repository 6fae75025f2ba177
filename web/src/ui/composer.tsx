/** Where a message is written, with its pictures. */

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { running, send, stop } from "../conversation/answering.ts";
import { wrongSettings } from "../conversation/settings.ts";
import { current } from "../conversation/store.ts";
import { path } from "../conversation/tree.ts";
import { ACCEPTED, filesOf, fromFile } from "../images/pictures.ts";
import { Icon, IconButton } from "./icons.tsx";
import { nameOf, Thumbnail } from "./picture.tsx";
import { attach, dialog, draftPictures, draftProblem, draftText } from "./state.ts";

/** The answer of the shown conversation that is being written; undefined if none is. */
function runningAnswer(): string | undefined {
  return path(current.value).find((turn) => running.value.has(turn.id))?.id;
}

function sendDraft(): void {
  const conversation = current.value;
  const isEmpty = !draftText.value.trim() && !draftPictures.value.length;
  if (isEmpty || runningAnswer() || wrongSettings(conversation.settings)) return;
  send(conversation.id, path(conversation).at(-1)?.id ?? null, draftText.value, draftPictures.value);
  draftText.value = "";
  draftPictures.value = [];
  draftProblem.value = "";
}

export function Composer() {
  const wrong = wrongSettings(current.value.settings);
  const onSubmit = (event: Event) => {
    event.preventDefault();
    sendDraft();
  };
  return (
    <form class="composer" aria-label="Your message" onSubmit={onSubmit}>
      {(draftProblem.value || wrong) && <p class="wrong" role="alert">{draftProblem.value || wrong}</p>}
      {draftPictures.value.length > 0 && <Attached />}
      <Text />
      <div class="composer-row">
        <Sources />
        <SendOrStop isWrong={wrong !== ""} />
      </div>
    </form>
  );
}

function Attached() {
  const remove = (id: string) => (draftPictures.value = draftPictures.value.filter((each) => each.id !== id));
  return (
    <ul class="attached" aria-label="Pictures of this message">
      {draftPictures.value.map((picture) => (
        <li key={picture.id}>
          <Thumbnail picture={picture} />
          <IconButton icon="close" name={`Remove ${nameOf(picture)}`} class="remove" onClick={() => remove(picture.id)} />
        </li>
      ))}
    </ul>
  );
}

function Text() {
  const area = useRef<HTMLTextAreaElement>(null);
  const { id } = current.value;
  useEffect(() => area.current?.focus({ preventScroll: true }), [id]);
  useLayoutEffect(() => {
    area.current!.style.height = "auto";
    area.current!.style.height = `${area.current!.scrollHeight}px`;
  }, [draftText.value]);
  const onKeyDown = (event: KeyboardEvent) => {
    // Enter also ends the choice of a character of Chinese or Japanese.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    sendDraft();
  };
  return (
    <textarea
      ref={area}
      rows={1}
      dir="auto"
      aria-label="Message"
      placeholder="Ask about a picture, or anything"
      value={draftText.value}
      onInput={(event) => (draftText.value = event.currentTarget.value)}
      onKeyDown={onKeyDown}
      onPaste={onPaste}
    />
  );
}

function onPaste(event: ClipboardEvent): void {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  void attach(files.map((file) => fromFile(file, file.name)));
}

function Sources() {
  const input = useRef<HTMLInputElement>(null);
  const onChange = () => {
    void attach(Array.from(input.current!.files ?? [], (file) => fromFile(file, file.name)));
    input.current!.value = "";
  };
  return (
    <div class="sources">
      <input ref={input} type="file" accept={ACCEPTED} multiple hidden aria-label="Pictures" onChange={onChange} />
      <IconButton icon="picture" name="Add pictures" onClick={() => input.current!.click()} />
      <IconButton icon="camera" name="Take a picture" onClick={() => (dialog.value = { kind: "camera" })} />
      <IconButton icon="link" name="Add a picture by its address" onClick={() => (dialog.value = { kind: "address" })} />
    </div>
  );
}

function SendOrStop({ isWrong }: { isWrong: boolean }) {
  const answer = runningAnswer();
  if (answer) {
    return (
      <button type="button" class="send" aria-label="Stop" title="Stop (Escape)" onClick={() => stop(answer)}>
        <Icon name="stop" />
      </button>
    );
  }
  const isEmpty = !draftText.value.trim() && !draftPictures.value.length;
  return (
    <button class="send" aria-label="Send" title="Send (Enter)" disabled={isEmpty || isWrong}>
      <Icon name="send" />
    </button>
  );
}

/** Stops the answer of the shown conversation; whether there was one. */
export function stopShown(): boolean {
  const answer = runningAnswer();
  if (answer) stop(answer);
  return answer !== undefined;
}
