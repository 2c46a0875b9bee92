"""The Jinja template of the report."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{% if task %}{{ task }} · {% endif %}MPDiffuser report</title>
<style>
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f5f6f8; --ink: #1a1d21; --faint: #6b727c; --rule: #dde1e6;
{% for name, (light, dark) in colors.items() %}
  --{{ name }}: {{ light }};
{% endfor %}
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --panel: #1e2125; --ink: #e8eaed; --faint: #979ea8; --rule: #33383f;
{% for name, (light, dark) in colors.items() %}
    --{{ name }}: {{ dark }};
{% endfor %}
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: .95rem; margin: 0 0 .25rem; font-weight: 600; }
p { margin: .5rem 0 1rem; max-width: 44rem; }
.quiet { color: var(--faint); font-size: .9rem; }
.lead { font-size: 1.15rem; margin: 1.25rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.card { background: var(--panel); border-radius: .5rem; padding: .75rem .9rem; border-top: 3px solid var(--c); }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { display: block; font-size: .85rem; line-height: 1.35; color: var(--faint); }
.card small { font-size: .85rem; font-weight: 400; color: var(--faint); }
.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.wide { width: 100%; }
.fold td { white-space: normal; }
th, td { padding: .4rem 0 .4rem .9rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--faint); font-weight: 500; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.text td:first-child { color: var(--faint); min-width: 8rem; }
.dot { display: inline-block; width: .6em; height: .6em; border-radius: 50%; background: var(--c); margin-right: .5em; }
.named { display: inline-block; padding-left: 1.1em; text-indent: -1.1em; }
.bar { text-align: left; width: 55%; min-width: 6rem; }
.bar i { display: block; height: .7rem; border-radius: .2rem; background: var(--mpdiffuser); min-width: 2px; }
figure { margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; font-family: inherit; }
.figure svg { max-width: 38rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(16.5rem, 1fr)); gap: 1.5rem 1.75rem; }
.curves figure { margin: 0; }
video { display: block; width: 100%; height: auto; border-radius: .4rem; background: #18191e; }
pre {
  background: var(--panel); padding: .8rem 1rem; border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: .95rem; }
dt { font-weight: 600; margin-top: .7rem; }
dd { margin: .1rem 0 0; max-width: 44rem; }
@media print { body { max-width: none; padding: 0; } h2, figure, .card, tr { break-inside: avoid; } }
</style>
</head>
<body>
{% macro dot(name) %}<span class="dot" {% if name %} style="--c: var(--{{ name }})"{% endif %}></span>{% endmacro %}
{% macro table_of(table) %}
<div class="scroll"><table class="wide">
<tr><th>method</th>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in table.rows %}
<tr><td><span class="named">{{ dot(row.color) }}{{ row.label }}</span></td>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endmacro %}

<header>
<h1>{{ task or "MPDiffuser report" }}</h1>
<p class="quiet">{{ facts | join(" · ") }}</p>
{% if headline %}<p class="lead">{{ headline }}</p>{% endif %}
<div class="cards">
{% for card in cards %}
<div class="card" style="--c: var(--{{ card.color }})"><span>{{ card.label }}</span>
<b>{{ card.mean }}{% if card.error %} <small>± {{ card.error }}</small>{% endif %}</b>
{% if card.share %}<span>{{ card.share }} of the expert’s</span>{% endif %}
</div>
{% endfor %}
</div>
</header>

<section>
<h2>Returns</h2>
{{ table_of(returns) }}
<figure class="figure">{{ returns_figure }}</figure>
<p class="quiet">A small dot is one episode{% if has_iqm %}. The large dot is the interquartile mean, the bar its 95 %
bootstrap interval{% endif %}.</p>
{% if scores %}{{ table_of(scores) }}{% endif %}
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}
</section>

{% if times %}
<section>
<h2>Time of a decision</h2>
{{ table_of(times) }}
{% if batch %}
<p class="quiet">Median / 95th percentile, in milliseconds. Batch: plans for {{ batch }} at once. One: one environment
alone.</p>
{% endif %}
</section>
{% endif %}

{% if feasibility %}
<section>
<h2>Can the plans be carried out?</h2>
<p>The simulator carries out a plan’s actions, step by step and without replanning. The smaller the distance between the
latents that it reaches and those that were planned, the more feasible the plan.</p>
<figure class="figure">{{ feasibility.figure }}</figure>
<div class="scroll"><table class="fold">
<tr><th>steps ahead</th>{% for k in feasibility.steps %}<th>{{ k }}</th>{% endfor %}</tr>
{% for row in feasibility.rows %}
<tr><td><span class="named">{{ dot(row.color) }}{{ row.label }}</span></td>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="quiet">Mean squared distance over the latent's dimensions, in variances of the training data (two unrelated
latents are about 2 apart), ± standard error.</p>
</section>
{% endif %}

{% if video %}
<section>
<h2>One episode</h2>
<video controls loop muted playsinline preload="metadata" src="{{ video }}"></video>
<p class="quiet">One row for each method, from the same start. Left: the simulator. The pictures beside it, if any, are
decoded from the plan of that moment: what it expects so many steps ahead. Below each is what really came.</p>
</section>
{% endif %}

{% if curves %}
<section>
<h2>Learning curves</h2>
<div class="curves">
{% for curve in curves %}<figure><h3>{{ curve.label }}</h3>{{ curve.figure }}</figure>{% endfor %}
</div>
<p class="quiet">Validation uses held-out episodes and the averaged (EMA) weights.</p>
</section>
{% endif %}

{% if stages %}
<section>
<h2>Time of each stage</h2>
<table class="wide">
{% for stage in stages %}
<tr><td>{{ stage.name }}</td><td>{{ stage.time }}</td>
<td class="bar"><i style="width: {{ stage.percent }}%"></i></td></tr>
{% endfor %}
<tr><td><b>sum</b></td><td><b>{{ stages_total }}</b></td><td class="bar"></td></tr>
</table>
<p class="quiet">Without the evaluation. Where cores are free, planner and dynamics model train at the same time; the
whole then took less than the sum.</p>
</section>
{% endif %}

{% if settings or machine %}
<section>
<h2>Settings and machine</h2>
{% for title, rows in (("Settings", settings), ("Machine", machine)) if rows %}
<details{{ " open" if title == "Machine" }}><summary>{{ title }}</summary>
<table class="text">
{% for name, value in rows %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</table></details>
{% endfor %}
</section>
{% endif %}

<section>
<h2>What the words mean</h2>
<dl>{% for word, meaning in glossary %}<dt>{{ word }}</dt><dd>{{ meaning }}</dd>{% endfor %}</dl>
</section>

{% if command %}
<section>
<h2>Command</h2>
<pre>{{ command }}</pre>
</section>
{% endif %}
</body>
</html>
"""
