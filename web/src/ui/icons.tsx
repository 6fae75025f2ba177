/** Icons, drawn in the colour of the text beside them. Buttons have a name of their own. */

const PATHS = {
  view: "M5 9V5h4M15 5h4v4M19 15v4h-4M9 19H5v-4M12 11a1 1 0 1 0 0 2 1 1 0 0 0 0-2",
  list: "M4 6h16M4 12h16M4 18h10",
  plus: "M12 5v14M5 12h14",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 5v4M8 15v4",
  code: "m8 8-4 4 4 4M16 8l4 4-4 4M13.5 6l-3 12",
  picture: "M5 5h14v14H5zM5 16l4-4 4 4 2-2 4 4M15 9h.01",
  camera: "M4 8h3l2-2h6l2 2h3v10H4zM12 16a3 3 0 1 0 0-6 3 3 0 0 0 0 6",
  link: "M10 14a4 4 0 0 0 6 .5l2.5-2.5a4 4 0 0 0-5.7-5.7L11.5 7.600M14 10a4 4 0 0 0-6-.5L5.500 12a4 4 0 0 0 5.700 5.700L12.500 16.400",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  copy: "M9 9h10v10H9zM5 15V5h10",
  branch: "M7 5v14M7 12c6 0 10-1 10-6M14 8l3-3 3 3",
  close: "M6 6l12 12M18 6 6 18",
  left: "M14 7l-5 5 5 5",
  right: "M10 7l5 5-5 5",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  download: "M12 5v10M8 11l4 4 4-4M5 19h14",
  upload: "M12 15V5M8 9l4-4 4 4M5 19h14",
  warning: "M12 9v4M12 16.500v.01M12 4 3.500 19h17z",
  tool: "M14 6a4 4 0 0 1 5 5l-2-2-2 .5-.5 2 2 2a4 4 0 0 1-5-5L5 15l3 3 6.500-6.500",
  keyboard: "M3 7h18v11H3zM7 11h.01M11 11h.01M15 11h.01M8 15h8",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 3v1.500M12 19.500V21M3 12h1.500M19.500 12H21M5.600 5.600l1 1M17.400 17.400l1 1M5.600 18.400l1-1M17.400 6.600l1-1",
  moon: "M19 14.500A7.500 7.500 0 0 1 9.500 5 7.500 7.500 0 1 0 19 14.500",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  grid: "M5 5h14v14H5zM12 5v14M5 12h14",
  check: "M5 12.500l4.500 4.500L19 7.500",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

/** A button with an icon alone, and its name for screen readers and as a tooltip. */
export function IconButton(props: {
  icon: IconName;
  name: string;
  onClick: () => void;
  class?: string;
  disabled?: boolean;
  pressed?: boolean;
  expanded?: boolean;
}) {
  return (
    <button
      type="button"
      class={`icon-button ${props.class ?? ""}`}
      aria-label={props.name}
      title={props.name}
      disabled={props.disabled ?? false}
      aria-pressed={props.pressed}
      aria-expanded={props.expanded}
      onClick={props.onClick}
    >
      <Icon name={props.icon} />
    </button>
  );
}
