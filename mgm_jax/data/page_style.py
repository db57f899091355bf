"""The look of pages: `BASE` of any, `STYLE` of the page of a batch."""

LOSS = "#f0a020"  # of what carries loss

BASE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --card: #fff; --ink: #1b2330; --dim: #667085;
  --line: #dfe3e9; --prompt: #b9c6d6; --loss: LOSS; --learnt: #fde7bd; --image: #4f6fd8;
  --image2: #8ea5ec; --box: #e3e9fc; --pad: #e4e7ec; --warn: #b3261e }
@media (prefers-color-scheme: dark) { :root { --bg: #13161b; --card: #1b1f26; --ink: #e5e8ed;
  --dim: #98a2b3; --line: #2f353f; --prompt: #52627a; --learnt: #6b4608; --image: #3f5cc0;
  --image2: #6f8ae6; --box: #28345f; --pad: #262b33; --warn: #ff8a80 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, "Segoe UI", sans-serif; margin: 0 auto; max-width: 1320px;
  padding: 1.5em; color: var(--ink); background: var(--bg) }
h1 { font-size: 1.5em; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15em; margin: 0 }
h3 { font-size: 1em; margin: 0; overflow-wrap: anywhere } p { margin: .3em 0 }
small, .dim { color: var(--dim); font-weight: normal; font-size: .87em }
code { overflow-wrap: anywhere } a { color: inherit; text-decoration: none }
section { margin-top: 2em; scroll-margin-top: 1em }
.tiles { display: flex; flex-wrap: wrap; gap: .8em; margin-top: 1em }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .6em 1.1em; min-width: 11em }
.tiles b { display: block; font-size: 1.6em; line-height: 1.3 } .tiles small { display: block }
.warning { color: var(--warn); border: 1px solid; border-radius: 8px; padding: .5em 1em }
""".replace("LOSS", LOSS)

STYLE = (
    BASE
    + """
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.6em; color: var(--dim); font-size: .9em }
.legend i { display: inline-block; width: 1.5em; height: .95em; margin-right: .5em;
  border-radius: 3px; vertical-align: -.1em }
.hint { font-style: italic }
.prompt { background: var(--prompt) } .loss { background: var(--loss) }
.image { background: repeating-linear-gradient(135deg, var(--image) 0 4px, var(--image2) 4px 8px) }
.padding { background: var(--pad) }
.bar { display: grid; grid-template-columns: 4.5em 1fr 4em; gap: .8em; align-items: center;
  margin: .35em 0; font-size: .9em; font-variant-numeric: tabular-nums }
.bar span { text-align: right } .bar a:hover { text-decoration: underline }
.bar div { display: flex; height: 22px; min-width: 0 }
.bar div a { display: flex; border-right: 2px solid var(--bg); border-radius: 3px;
  overflow: hidden }
.bar div a:hover { outline: 2px solid var(--ink) } .bar div a i { flex-basis: 0 }
.bar .padding { flex: 1; border-radius: 3px }

.group { margin: .6em 0 1.1em } .slots { display: flex; flex-wrap: wrap; gap: .4em; margin: .3em 0 }
.slots > * { width: 72px; text-align: center; line-height: 1.2; font-size: .85em }
.slots img { display: block; width: 64px; height: 64px; margin: 0 auto 2px; border-radius: 4px }
.slots i { display: block; width: 64px; height: 64px; margin: 0 auto 2px; border-radius: 4px;
  border: 1px dashed var(--dim) }
.slots a[href]:hover small { text-decoration: underline }

.row { border-top: 2px solid var(--line); padding-top: 1em }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8em 1.1em 1.1em; margin: .8em 0; scroll-margin-top: 1em }
article:target, .views:target { outline: 2px solid var(--image) }
article h3 b { display: inline-block; min-width: 1.7em; text-align: center; border-radius: 5px;
  background: var(--ink); color: var(--card); margin-right: .4em }
.example { display: flex; gap: 1.4em; align-items: flex-start; margin-top: .6em }
.pictures { flex: none; display: flex; flex-direction: column; gap: .8em }
.views { display: grid; grid-template-columns: 240px 168px; gap: 8px; align-items: start;
  grid-template-rows: auto auto 1fr }
.views p { grid-column: 1 / -1; margin: 0; color: var(--dim); font-size: .82em; order: -1 }
figure { margin: 0 } figure div { display: grid; gap: 4px }
figure img { display: block; width: 100% } .tiny img { image-rendering: pixelated }
figcaption { color: var(--dim); font-size: .82em }
.hr { grid-row: span 2 }
.rest { color: var(--dim); background: var(--pad); border-radius: 6px; padding: .3em 1.1em }
@media (max-width: 800px) { body { padding: 1em } .example { flex-direction: column }
  .views { grid-template-columns: 3fr 2fr } .pictures, .text { width: 100% } }

.text { flex: 1; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.75;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 13px }
.text > * { font: inherit; border-radius: 2px; padding: 2px 0;
  box-shadow: inset -1px 0 var(--line) }
.text b { background: var(--learnt);
  box-shadow: inset -1px 0 var(--card), inset 0 -2px var(--loss) }
.text .special { font-weight: 600; font-style: italic }
.text .box { display: inline-block; background: var(--box); border: 1px solid var(--image);
  border-radius: 5px; padding: 0 .7em; margin: 0 2px; box-shadow: none }
.text em { color: var(--warn); border: 1px solid; padding: 0 .4em; margin: 0 2px }
.text [data-t]:hover { outline: 1.5px solid var(--ink) }
.text [data-t]:hover::after { content: attr(data-t); position: fixed; left: 50%; bottom: 14px;
  transform: translateX(-50%); background: var(--ink); color: var(--card); padding: .45em 1.1em;
  border-radius: 8px; font: 14px/1.4 system-ui, sans-serif; white-space: pre }
"""
)
