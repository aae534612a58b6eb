"""Earlier calls, written by small templates as those of the models write them, and read back: every form, recognised from its template alone."""

import pytest
from bench.calls import CALLS, trip

from corral_server.dialects import formats
from corral_server.dialects.formats import Dialect

HEAD = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}"
FOOT = "{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
VALUE = "{{ v if v is string else v | tojson }}"


def template(each: str, argument: str = "", *, before: str = "", after: str = "", between: str = "", head: str = HEAD) -> str:
    """`each` call holds ARGUMENTS, written one by one as `argument`."""
    arguments = "{% for k, v in c.function.arguments.items() %}" + argument.replace("VALUE", VALUE) + "{% endfor %}"
    comma = f"{{% if not loop.last %}}{between}{{% endif %}}" if between else ""
    body = each.replace("NAME", "{{ c.function.name }}").replace("ARGUMENTS", arguments)
    return f"{head}{before}{{% for c in m.tool_calls %}}{body}{comma}{{% endfor %}}{after}{FOOT}"


def dsml(section: str) -> str:
    named = "<DSMLparameter name=\"{{ k }}\" string=\"{{ 'true' if v is string else 'false' }}\">VALUE</DSMLparameter>\n"
    text = template('<DSMLinvoke name="NAME">\nARGUMENTS</DSMLinvoke>\n', named, before=f"<DSML{section}>\n", after=f"</DSML{section}>")
    return text.replace("DSML", "｜DSML｜")  # noqa: RUF001


def braced(opening: str, closing: str, quote: str) -> str:
    """With a macro, since what is nested is written in the same way."""
    macro = (
        "{% macro say(v) %}{% if v is string %}Q{{ v }}Q{% elif v is mapping %}{ {%- for k, w in v.items() %}{{ k }}:{{ say(w) }}"
        "{% if not loop.last %},{% endif %}{% endfor -%} }{% elif v is sequence %}[{% for w in v %}{{ say(w) }}{% if not loop.last %},{% endif %}"
        "{% endfor %}]{% else %}{{ v | tojson }}{% endif %}{% endmacro %}"
    ).replace("Q", quote)
    argument = "{{ k }}:{{ say(v) }}{% if not loop.last %},{% endif %}"
    return template(f"{opening}call:NAME{{ARGUMENTS}}{closing}".replace("{A", "{{ '{' }}A").replace("S}", "S{{ '}' }}"), argument, head=macro + HEAD)


TEMPLATES: list[tuple[Dialect, str]] = [
    (formats.QWEN_CODER, template("<tool_call>\n<function=NAME>\nARGUMENTS</function>\n</tool_call>", "<parameter={{ k }}>\nVALUE\n</parameter>\n")),
    (formats.SEED, template("<seed:tool_call>\n<function=NAME>\nARGUMENTS</function>\n</seed:tool_call>", "<parameter={{ k }}>VALUE</parameter>\n")),
    (formats.GLM, template("<tool_call>NAME\nARGUMENTS</tool_call>", "<arg_key>{{ k }}</arg_key>\n<arg_value>VALUE</arg_value>\n", between="\n")),
    (formats.GLM, template("<tool_call>NAMEARGUMENTS</tool_call>", "<arg_key>{{ k }}</arg_key><arg_value>VALUE</arg_value>")),
    (
        formats.MINIMAX,
        template(
            '<invoke name="NAME">\nARGUMENTS</invoke>\n', '<parameter name="{{ k }}">VALUE</parameter>\n',
            before="<minimax:tool_call>\n", after="</minimax:tool_call>",
        ),
    ),
    (formats.DSML, dsml("function_calls")),
    (formats.DSML_4, dsml("tool_calls")),
    (
        formats.KIMI,
        template(
            "<|tool_call_begin|>functions.NAME:{{ loop.index0 }}<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>",
            before="<|tool_calls_section_begin|>", after="<|tool_calls_section_end|>",
        ),
    ),
    (formats.GEMMA, braced("<|tool_call>", "<tool_call|>", '<|"|>')),
    (formats.FUNCTION_GEMMA, braced("<start_function_call>", "<end_function_call>", "<escape>")),
    (
        formats.LFM,
        template(
            "NAME(ARGUMENTS)", "{{ k }}={{ v | tojson }}{% if not loop.last %}, {% endif %}",
            before="<|tool_call_start|>[", after="]<|tool_call_end|>", between=", ",
        ),
    ),
    (
        formats.APRIEL,
        template('{"name": "NAME", "arguments": {{ c.function.arguments | tojson }}}', before="<tool_calls>[", after="]</tool_calls>", between=", "),
    ),
]  # fmt: skip


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("dialect", "source"), TEMPLATES, ids=[d.name for d, _ in TEMPLATES])
def test_what_a_template_writes_is_read(dialect: Dialect, source: str, calls: list):
    assert formats.dialect_of(source) is dialect
    assert trip(source, calls) == calls
