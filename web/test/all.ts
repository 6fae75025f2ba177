/** All tests of the parts of the page, which need no browser. */

import "./conversation.test.ts";
import "./marks.test.ts";
import "./text.test.ts";
