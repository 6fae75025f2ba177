import assert from "node:assert/strict";
import { test } from "node:test";
import { findActions, placesOf } from "../src/answer/actions.ts";
import { findMarks, split, withoutUnfinished } from "../src/answer/marks.ts";

const shapes = (text: string, bare = true) => findMarks(text, bare).marks.map((mark) => [mark.label, ...mark.shapes]);

test("a box with its label, and the text around it", () => {
  const { text, marks } = findMarks("See <ref>the cat</ref><box>[[40, 160, 400, 540]]</box>, there.");
  assert.deepEqual(split(text), ["See ", 0, ", there."]);
  assert.deepEqual(marks[0]?.shapes, [{ kind: "box", x1: 40, y1: 160, x2: 400, y2: 540 }]);
  assert.equal(marks[0]?.label, "the cat");
  assert.equal(marks[0]?.source, "<ref>the cat</ref><box>[[40, 160, 400, 540]]</box>");
});

test("several boxes of one label, and a box without one", () => {
  assert.deepEqual(shapes("<ref>cars</ref><box>[[1,2,3,4],[5,6,7,8]]</box> <box>[[9, 9, 10, 10]]</box>"), [
    ["cars", { kind: "box", x1: 1, y1: 2, x2: 3, y2: 4 }, { kind: "box", x1: 5, y1: 6, x2: 7, y2: 8 }],
    ["", { kind: "box", x1: 9, y1: 9, x2: 10, y2: 10 }],
  ]);
});

test("corners in the wrong order, and fractions of the image", () => {
  assert.deepEqual(shapes("<box>[[400, 540, 40, 160]]</box>"), [["", { kind: "box", x1: 40, y1: 160, x2: 400, y2: 540 }]]);
  assert.deepEqual(shapes("<box>[[0.25, 0.5, 0.75, 1]]</box>"), [["", { kind: "box", x1: 250, y1: 500, x2: 750, y2: 1000 }]]);
});

test("quadrilaterals and points, in every form of brackets", () => {
  const corners = [{ x: 1, y: 2 }, { x: 9, y: 3 }, { x: 8, y: 7 }, { x: 2, y: 6 }];
  for (const numbers of ["[[1,2,9,3,8,7,2,6]]", "[[1,2],[9,3],[8,7],[2,6]]", "(1,2),(9,3),(8,7),(2,6)"]) {
    assert.deepEqual(shapes(`<ref>STOP</ref><quad>${numbers}</quad>`), [["STOP", { kind: "quad", corners }]]);
  }
  assert.deepEqual(shapes("<point>[[101, 872]]</point>"), [["", { kind: "point", at: { x: 101, y: 872 } }]]);
  assert.equal(findMarks("<point>[[1, 2], [3, 4]]</point>").marks[0]?.shapes.length, 2);
});

test("boxes without tags count only where there is a picture", () => {
  assert.deepEqual(shapes("It is at [[10, 20, 30, 40]]."), [["", { kind: "box", x1: 10, y1: 20, x2: 30, y2: 40 }]]);
  assert.deepEqual(shapes("<ref>A</ref>[[10, 20, 30, 40]]"), [["A", { kind: "box", x1: 10, y1: 20, x2: 30, y2: 40 }]]);
  assert.deepEqual(shapes("It is at [[10, 20, 30, 40]].", false), []);
  assert.deepEqual(shapes("<box>[[1,2,3,4]]</box>", false), [["", { kind: "box", x1: 1, y1: 2, x2: 3, y2: 4 }]]);
  assert.deepEqual(shapes("a[[1, 2, 3, 4]] and [[1, 2, 3]] and [[1,2,3,4], [5]]"), []);
});

for (const text of [
  "<box>[[1, 2, 3]]</box>",
  "<box>[[1, 2, 3, 1001]]</box>",
  "<box>[[-1, 2, 3, 4]]</box>",
  "<box>[[a, 2, 3, 4]]</box>",
  "<box>[1, 2, 3, 4]</quad>",
  "<box></box>",
  "<ref>only a label</ref>",
  "<box>[[1, 2, 3, 4]]; alert(1)</box>",
]) {
  test(`no mark: ${text}`, () => assert.deepEqual(findMarks(text), { text, marks: [] }));
}

test("characters of a text cannot pass for marks", () => {
  const { text } = findMarks("\ue000\ue100\ue001 and <box>[[1,2,3,4]]</box>");
  assert.deepEqual(split(text), ["\ue100 and ", 0, ""]);
});

test("actions are read with their values, and have their places", () => {
  const [click, write, swipe, drag] = findActions(
    "pyautogui.click(x=0.2346, y=0.381)\npyautogui.write(message='hi (you), \\'x\\'')\n" +
      "mobile.swipe(from_coord=[0.5, 0.9], to_coord=(0.5, 0.2))\npyautogui.dragTo(250, 500, button='left')",
  ).map((found) => found.action);
  assert.equal(click?.name, "pyautogui.click");
  assert.deepEqual(placesOf(click!), [{ x: 234.6, y: 381 }]);
  assert.deepEqual([write?.named["message"], placesOf(write!)], ["hi (you), 'x'", []]);
  assert.deepEqual(placesOf(swipe!), [{ x: 500, y: 900 }, { x: 500, y: 200 }]);
  assert.deepEqual(placesOf(drag!), [{ x: 250, y: 500 }]);
  assert.deepEqual(findActions("mobile.home() pyautogui.hotkey('ctrl', 'c')").map((each) => each.action.values), [[], ["ctrl", "c"]]);
});

for (const text of [
  "pyautogui.click(alert(1))",
  "pyautogui.click(x=fetch('/'), y=1)",
  "pyautogui.click(x=0.5, y=0.5",
  "pyautogui.click(x=1+1, y=2)",
  "os.system('rm')",
  "notpyautogui.click(x=0.1, y=0.1)",
  "pyautogui.click(x=0.5 y=0.5)",
]) {
  test(`no action: ${text}`, () => assert.deepEqual(findActions(text), []));
}

test("places outside of the picture are none", () => {
  for (const values of ["x=-0.1, y=0.2", "x=1200, y=300", "x='a', y=2", ""]) {
    assert.deepEqual(findActions(`pyautogui.click(${values})`).flatMap((each) => placesOf(each.action)), []);
  }
});

test("an action in an answer is a mark", () => {
  const { text, marks } = findMarks("```python\npyautogui.click(x=0.1, y=0.2)\n```\nthen pyautogui.press('enter')");
  assert.deepEqual(split(text), ["```python\n", 0, "\n```\nthen ", 1, ""]);
  assert.deepEqual(marks.map((mark) => mark.shapes.length), [1, 0]);
});

test("while an answer is written, the beginning of a mark is not shown", () => {
  for (const end of ["<", "<re", "<ref>red", "<box>[[1, 2", "</ref", "<quad>", "<point>[[3"]) assert.equal(withoutUnfinished(`A ${end}`), "A ");
  for (const text of ["A < b", "a <b>", "<ref>x</ref>", "1 <2"]) assert.equal(withoutUnfinished(text), text);
});
