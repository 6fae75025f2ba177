/** A request as code for one's own program. */

import { useEffect, useState } from "preact/hooks";
import { address, key } from "../api/http.ts";
import { modelsProblem } from "../api/models.ts";
import { curl } from "../code/curl.ts";
import { javascript } from "../code/javascript.ts";
import { python } from "../code/python.ts";
import { type CodeRequest, fileAddress } from "../code/request.ts";
import { requestBody } from "../conversation/body.ts";
import { wrongSettings } from "../conversation/settings.ts";
import { current } from "../conversation/store.ts";
import { path, pathTo } from "../conversation/tree.ts";
import type { AnyTurn } from "../conversation/types.ts";
import { dataUrlOf, type Picture } from "../images/pictures.ts";
import { cardOf } from "../api/models.ts";
import { Code } from "./code.tsx";
import { Modal } from "./dialog.tsx";
import { draftPictures, draftText } from "./state.ts";

const LANGUAGES = [
  { name: "curl", language: "bash", write: curl },
  { name: "Python", language: "python", write: python },
  { name: "JavaScript", language: "javascript", write: javascript },
] as const;

/** The turns that a request has: those before an answer, or those of the next request. */
function turnsOf(turnId: string | null): AnyTurn[] {
  const conversation = current.value;
  const turns = turnId ? pathTo(conversation, turnId).slice(0, -1) : path(conversation);
  if (turnId) return turns;
  const isWritten = draftText.value.trim() !== "" || draftPictures.value.length > 0;
  if (!isWritten && turns.length) return turns.at(-1)?.role === "assistant" ? turns.slice(0, -1) : turns;
  const text = draftText.value || (isWritten ? "" : "Hello");
  return [...turns, { id: "", parent: null, role: "user", text, pictures: draftPictures.value }];
}

export function CodeDialog({ turnId }: { turnId: string | null }) {
  const [index, setIndex] = useState(0);
  const [isWhole, setWhole] = useState(false);
  const turns = turnsOf(turnId);
  const pictures = turns.flatMap((turn) => (turn.role === "user" ? turn.pictures : []));
  const addresses = useAddresses(pictures, isWhole);
  const wrong = wrongSettings(current.value.settings);
  const { language, write, name } = LANGUAGES[index]!;
  return (
    <Modal title="This request as code" wide>
      <Tabs index={index} onChoose={setIndex} />
      <div role="tabpanel" id="code-panel" aria-labelledby={`code-tab-${index}`}>
        {wrong ? <p class="wrong">{wrong}</p> : <Code text={write(requestOf(turns, addresses))} language={language} label={`The request in ${name}`} />}
      </div>
      {pictures.some((each) => each.kind === "local") && (
        <label class="check">
          <input type="checkbox" checked={isWhole} onChange={(event) => setWhole(event.currentTarget.checked)} />
          Put the pictures into the code, instead of reading their files
        </label>
      )}
    </Modal>
  );
}

function requestOf(turns: AnyTurn[], addresses: (picture: Picture) => string): CodeRequest {
  const { settings } = current.value;
  const model = settings.model || cardOf("")?.id || "default";
  const body = requestBody(turns, { ...settings, model }, addresses);
  const needsKey = key.value !== "" || modelsProblem.value?.kind === "key";
  return { base: address("v1"), body, needsKey };
}

/** The addresses of pictures in the code: their content if `isWhole`, as soon as it is read, otherwise their files. */
function useAddresses(pictures: Picture[], isWhole: boolean): (picture: Picture) => string {
  const [contents, setContents] = useState<ReadonlyMap<string, string>>(new Map());
  const ids = pictures.map((each) => each.id).join();
  useEffect(() => {
    const local = pictures.filter((each) => each.kind === "local");
    const read = local.map(async (each) => [each.id, await dataUrlOf(each.blob)] as const);
    if (isWhole) void Promise.all(read).then((found) => setContents(new Map(found)));
  }, [ids, isWhole]);
  return (picture) => {
    const content = isWhole ? contents.get(picture.id) : undefined;
    return content ?? fileAddress(picture, pictures.findIndex((each) => each.id === picture.id) + 1);
  };
}

function Tabs({ index, onChoose }: { index: number; onChoose: (index: number) => void }) {
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: LANGUAGES.length - 1 }[event.key];
    if (!step) return;
    const next = (index + step) % LANGUAGES.length;
    onChoose(next);
    document.getElementById(`code-tab-${next}`)?.focus();
  };
  return (
    <div class="segments" role="tablist" aria-label="Language" onKeyDown={onKeyDown}>
      {LANGUAGES.map(({ name }, number) => (
        <button
          type="button"
          key={name}
          id={`code-tab-${number}`}
          role="tab"
          aria-selected={number === index}
          aria-controls="code-panel"
          tabIndex={number === index ? 0 : -1}
          onClick={() => onChoose(number)}
        >
          {name}
        </button>
      ))}
    </div>
  );
}
