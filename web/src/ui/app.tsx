/** The page as a whole. */

import { useEffect, useState } from "preact/hooks";
import { models, modelsProblem, refreshModels } from "../api/models.ts";
import type { ModelCard } from "../api/types.ts";
import { begin, current, updateSettings } from "../conversation/store.ts";
import { filesOf, fromFile } from "../images/pictures.ts";
import { AddressDialog } from "./addressDialog.tsx";
import { CameraDialog } from "./cameraDialog.tsx";
import { CodeDialog } from "./codeDialog.tsx";
import { Composer, stopShown } from "./composer.tsx";
import { Icon, IconButton } from "./icons.tsx";
import { KeysDialog } from "./keysDialog.tsx";
import { List } from "./list.tsx";
import { PictureDialog } from "./picture.tsx";
import { ProblemBox } from "./problem.tsx";
import { SettingsPanel } from "./settings.tsx";
import { announcement, attach, dialog, listOpen, settingsOpen } from "./state.ts";
import { ToolDialog } from "./toolDialog.tsx";
import { Turns } from "./turns.tsx";

export function App() {
  const isDropping = useDropping();
  useKeys();
  const closePanels = () => {
    listOpen.value = settingsOpen.value = false;
  };
  return (
    <div class={`page ${listOpen.value ? "has-list" : ""} ${settingsOpen.value ? "has-panel" : ""}`}>
      {listOpen.value && <List />}
      <div class="middle">
        <TopBar />
        <main>
          {modelsProblem.value && <div class="column"><ProblemBox problem={modelsProblem.value} onRetry={() => void refreshModels()} /></div>}
          <Turns />
          <div class="column"><Composer /></div>
        </main>
      </div>
      {settingsOpen.value && <SettingsPanel />}
      <button type="button" class="scrim" tabIndex={-1} aria-hidden="true" onClick={closePanels} />
      {isDropping && <div class="dropping"><Icon name="picture" />Drop the pictures here</div>}
      <OpenDialog />
      <div class="said-only" role="status">{announcement.value}</div>
    </div>
  );
}

function OpenDialog() {
  const open = dialog.value;
  switch (open?.kind) {
    case "code": return <CodeDialog turnId={open.turnId} />;
    case "camera": return <CameraDialog />;
    case "address": return <AddressDialog />;
    case "picture": return <PictureDialog picture={open.picture} />;
    case "tool": return <ToolDialog index={open.index} />;
    case "keys": return <KeysDialog />;
    default: return null;
  } // prettier-ignore
}

function TopBar() {
  return (
    <header class="top">
      <IconButton icon="list" name="Conversations" expanded={listOpen.value} onClick={() => (listOpen.value = !listOpen.value)} />
      <ModelChoice />
      <span class="space" />
      <button type="button" class="button" onClick={() => (dialog.value = { kind: "code", turnId: null })}>
        <Icon name="code" />
        Code
      </button>
      <IconButton icon="settings" name="Settings" expanded={settingsOpen.value} onClick={() => (settingsOpen.value = !settingsOpen.value)} />
    </header>
  );
}

function ModelChoice() {
  const { model } = current.value.settings;
  const listed = models.value;
  const isUnknown = model !== "" && !listed.some((card) => card.id === model);
  const parents = [...new Set(listed.flatMap((card) => card.parent ?? []))];
  return (
    <select
      class="model"
      aria-label="Model"
      value={model || (listed[0]?.id ?? "")}
      onChange={(event) => updateSettings({ model: event.currentTarget.value })}
    >
      {isUnknown && <option value={model}>{model} (not served)</option>}
      {listed.filter((card) => !card.parent).map(option)}
      {parents.map((parent) => (
        <optgroup key={parent} label={`Adapters of ${parent}`}>
          {listed.filter((card) => card.parent === parent).map(option)}
        </optgroup>
      ))}
    </select>
  );
}

function option({ id }: ModelCard) {
  return (
    <option key={id} value={id}>
      {id}
    </option>
  );
}

/** Takes pictures that are dropped anywhere on the page; whether some are held over it. */
function useDropping(): boolean {
  const [depth, setDepth] = useState(0);
  useEffect(() => {
    const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    const handlers: Record<string, (event: DragEvent) => void> = {
      dragenter: () => setDepth((before) => before + 1),
      dragleave: () => setDepth((before) => before - 1),
      dragover: () => undefined,
      drop: (event) => {
        setDepth(0);
        void attach(filesOf(event.dataTransfer).map((file) => fromFile(file, file.name)));
      },
    };
    const listeners = Object.entries(handlers).map(([name, handle]) => {
      const listener = (event: Event) => {
        if (!hasFiles(event as DragEvent)) return;
        event.preventDefault();
        handle(event as DragEvent);
      };
      document.addEventListener(name, listener);
      return () => document.removeEventListener(name, listener);
    });
    return () => listeners.forEach((remove) => remove());
  }, []);
  return depth > 0;
}

const SHORTCUTS: Record<string, () => void> = {
  KeyN: begin,
  KeyS: () => (settingsOpen.value = !settingsOpen.value),
  KeyL: () => (listOpen.value = !listOpen.value),
  KeyC: () => (dialog.value = { kind: "code", turnId: null }),
};

function useKeys(): void {
  useEffect(() => {
    const onKeyDown = (event: KeyboardEvent) => {
      if (dialog.value) return;
      const shortcut = event.altKey && !event.ctrlKey && !event.metaKey ? SHORTCUTS[event.code] : undefined;
      if (shortcut) {
        event.preventDefault();
        shortcut();
      } else if (event.key === "Escape" && !event.defaultPrevented && !stopShown()) {
        settingsOpen.value = false;
        if (matchMedia("(max-width: 899px)").matches) listOpen.value = false;
      }
    };
    document.addEventListener("keydown", onKeyDown);
    return () => document.removeEventListener("keydown", onKeyDown);
  }, []);
}
