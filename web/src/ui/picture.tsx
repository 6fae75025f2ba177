/** Pictures: small ones, and a large one with the tiles that the model sees. */

import { useEffect, useState } from "preact/hooks";
import { cardOf } from "../api/models.ts";
import { visibleName } from "../answer/visible.ts";
import { current } from "../conversation/store.ts";
import type { LocalPicture, Picture } from "../images/pictures.ts";
import { type Tiles, tilesOf } from "../images/tiling.ts";
import { Modal } from "./dialog.tsx";
import { Icon } from "./icons.tsx";
import { dialog } from "./state.ts";

/** An address of a file's content that is good while the component is shown. */
export function useAddress(picture: LocalPicture): string {
  const [address, setAddress] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(picture.blob);
    setAddress(made);
    return () => URL.revokeObjectURL(made);
  }, [picture.blob]);
  return address;
}

export function nameOf(picture: Picture): string {
  return visibleName(picture.kind === "local" ? picture.name : picture.url);
}

/** The tiles of a picture with the settings of the conversation; null if its size or the server's rule is not known. */
export function tilesOfPicture(picture: Picture): Tiles | null {
  const { model, maxTiles } = current.value.settings;
  const tiling = cardOf(model)?.image_tiling;
  if (picture.kind === "remote" || !picture.width || !tiling) return null;
  return tilesOf(picture.width, picture.height, tiling, maxTiles);
}

export function tokensInWords({ count, tokens }: Tiles): string {
  return `${count} ${count === 1 ? "tile" : "tiles"} · ${tokens.toLocaleString("en")} tokens`;
}

/** A picture's image; a card for one that this page does not load or cannot show. */
export function PictureImage({ picture, alt }: { picture: Picture; alt?: string }) {
  if (picture.kind === "local" && picture.width) return <LocalImage picture={picture} alt={alt ?? nameOf(picture)} />;
  const reason = picture.kind === "remote" ? "fetched by the server" : "not shown by this browser";
  return (
    <span class="no-image">
      <Icon name="picture" />
      <span class="no-image-name">{nameOf(picture)}</span>
      <span class="note">{reason}</span>
    </span>
  );
}

function LocalImage({ picture, alt }: { picture: LocalPicture; alt: string }) {
  const address = useAddress(picture);
  return <img src={address || undefined} alt={alt} width={picture.width} height={picture.height} />;
}

/** A small picture that opens the large one. */
export function Thumbnail({ picture }: { picture: Picture }) {
  const tiles = tilesOfPicture(picture);
  const open = () => (dialog.value = { kind: "picture", picture });
  return (
    <button type="button" class="thumbnail" onClick={open}>
      <span class="said-only">Show {nameOf(picture)} and its tiles.</span>
      <PictureImage picture={picture} alt="" />
      {tiles && <span class="thumbnail-cost">{tokensInWords(tiles)}</span>}
    </button>
  );
}

export function PictureDialog({ picture }: { picture: Picture }) {
  const [shown, setShown] = useState(true);
  const tiles = tilesOfPicture(picture);
  return (
    <Modal title={nameOf(picture)} wide>
      <div class="tiled">
        <PictureImage picture={picture} />
        {tiles && shown && <Grid tiles={tiles} />}
      </div>
      {tiles ? <Cost picture={picture as LocalPicture} tiles={tiles} shown={shown} onShow={setShown} /> : <Unknown />}
    </Modal>
  );
}

function Cost(props: { picture: LocalPicture; tiles: Tiles; shown: boolean; onShow: (shown: boolean) => void }) {
  const { picture, tiles } = props;
  const each = tiles.tokens / tiles.count;
  const cut = tiles.cols * tiles.rows === 1 ? "one tile" : `${tiles.cols} × ${tiles.rows} tiles`;
  return (
    <div class="cost">
      <p>
        <strong>{tiles.tokens.toLocaleString("en")} tokens.</strong> The model sees this picture of {picture.width} ×{" "}
        {picture.height} pixels as {cut}
        {tiles.thumbnail ? " and a thumbnail of the whole" : ""}, {each} tokens each.
      </p>
      <label class="check">
        <input type="checkbox" checked={props.shown} onChange={(event) => props.onShow(event.currentTarget.checked)} />
        Show the tiles
      </label>
    </div>
  );
}

function Unknown() {
  return <p class="note">The page does not know the size of this picture, so it cannot tell its tiles. The server can.</p>;
}

function Grid({ tiles }: { tiles: Tiles }) {
  const numbers = Array.from({ length: tiles.cols * tiles.rows }, (_, index) => index);
  return (
    <div class="tile-grid" data-cols={tiles.cols} data-rows={tiles.rows} style={{ gridTemplateColumns: `repeat(${tiles.cols}, 1fr)` }}>
      {numbers.map((index) => (
        <span key={index}>{index + 1}</span>
      ))}
    </div>
  );
}
