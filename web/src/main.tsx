/** The playground of a ternvl server. */

import { render } from "preact";
import { refreshModels } from "./api/models.ts";
import { begin, keepAll, refreshHeads } from "./conversation/store.ts";
import { App } from "./ui/app.tsx";
import { restoreTheme } from "./ui/state.ts";

restoreTheme();
begin();
render(<App />, document.getElementById("app")!);
void refreshModels();
void refreshHeads();

addEventListener("pagehide", keepAll);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "hidden") return keepAll();
  // Adapters may have been loaded meanwhile, and conversations changed in another tab.
  void refreshModels();
  void refreshHeads();
});
