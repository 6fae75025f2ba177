/** Which tiles a model sees of an image: the official rule, as ternvl/prompt/tiling.py has it. */

export interface Tiling {
  tile_size: number;
  tokens_per_tile: number;
  min_dynamic_patch: number;
  max_dynamic_patch: number;
  use_thumbnail: boolean;
}

export interface Tiles {
  cols: number;
  rows: number;
  thumbnail: boolean;
  /** With the thumbnail. */
  count: number;
  tokens: number;
}

/** The most tiles that a request may ask for. */
export const MOST_TILES = 40;

type Grid = [cols: number, rows: number];

const known = new Map<string, Grid[]>();

/** The grids of `least` to `most` tiles, the smallest first. */
function candidates(least: number, most: number): Grid[] {
  const name = `${least} ${most}`;
  const grids = known.get(name) ?? allGrids(least, most);
  known.set(name, grids);
  return grids;
}

function allGrids(least: number, most: number): Grid[] {
  const grids: Grid[] = [];
  for (let cols = 1; cols <= most; cols++) {
    for (let rows = 1; rows <= Math.floor(most / cols); rows++) {
      if (cols * rows >= least) grids.push([cols, rows]);
    }
  }
  return grids.sort((a, b) => a[0] * a[1] - b[0] * b[1]);
}

/**
 * The grid whose shape is closest to the image's. On an exact tie, a later and larger grid is taken if the
 * image has more than half of its pixels.
 */
export function grid(width: number, height: number, least: number, most: number, side: number): Grid {
  const aspect = width / height;
  let best: Grid = [1, 1];
  let bestDistance = Infinity;
  for (const [cols, rows] of candidates(least, most)) {
    const distance = Math.abs(aspect - cols / rows);
    const fillsHalf = width * height > 0.5 * side * side * cols * rows;
    if (distance < bestDistance || (distance === bestDistance && fillsHalf)) {
      best = [cols, rows];
      bestDistance = distance;
    }
  }
  return best;
}

/** The tiles of an image; `most` is the request's own limit, or null for the server's. */
export function tilesOf(width: number, height: number, tiling: Tiling, most: number | null): Tiles {
  const limit = most ?? tiling.max_dynamic_patch;
  const least = Math.min(tiling.min_dynamic_patch, limit);
  const [cols, rows] = grid(width, height, least, limit, tiling.tile_size);
  const thumbnail = tiling.use_thumbnail && cols * rows > 1;
  const count = cols * rows + Number(thumbnail);
  return { cols, rows, thumbnail, count, tokens: count * tiling.tokens_per_tile };
}
