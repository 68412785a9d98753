"""Templates that try to get out of the sandbox or to use up the machine, and a program that runs them in small quarters.

Run as a program it prints, as JSON, what each attack came to: "text" or "refused", what was said, and the processor time.
It has two gigabytes of address space, so that an attack on memory ends as such. Arguments: limits on steps and
seconds, and a divisor of the size of the sources.
"""

# ruff: noqa: E501 - line breaks belong to the templates

from __future__ import annotations

import json
import resource
import sys
import time

RANGE = "range(99999)"
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = "
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = "
END = " %}{% endfor %}"

ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "class attr filter": "{{ ''|attr('__class__') }}",
    "class item": "{{ ''['__class__'] }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "globals of range": "{{ range.__self__ }}",
    "init globals": "{{ namespace.__init__.__globals__ }}",
    "macro environment": "{% macro m() %}{% endmacro %}{{ m._environment }}",
    "self context": "{{ self._TemplateReference__context }}",
    "loop iterator": "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "format attribute": "{{ '{0.__class__}'.format(1) }}",
    "format item": "{{ '{x.__class__.__mro__}'.format(x=1) }}",
    "format map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "format by map filter": "{{ ['{0.__class__}'] | map('format', 1) | list }}{{ ('{0.__class__}' | attr('format'))(1) }}",
    "map attribute": "{{ ['x'] | map(attribute='__class__') | list | first }}",
    "sort attribute": "{{ ['x', 'y'] | sort(attribute='__class__.__base__') }}",
    "groupby attribute": "{{ ['x'] | groupby('__class__') | first }}",
    "append": "{{ messages.append(1) }}",
    "dict update": "{{ messages[0].update({'role': 'x'}) }}",
    "dict pop": "{{ messages[0].pop('role') }}",
    "setattr": "{% set messages.x = 1 %}",
    "encode": "{{ 'x'.encode() }}",
    "to_bytes": "{{ (1).to_bytes(10, 'big') }}",
    "cycler": "{{ cycler(1) }}",
    "joiner": "{{ joiner() }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "lipsum globals": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "open": "{{ open('/etc/passwd') }}",
    "import": "{{ __import__('os') }}",
    "template data call": "{{ messages() }}",
    "dict class": "{{ dict.__subclasses__() }}",
    "dict fromkeys": "{{ dict.mro() }}",
    "namespace private": "{% set ns = namespace() %}{{ ns.__init__ }}",
    "environment": "{{ environment }}{{ context }}{{ environment.meter }}",
    "random": "{{ [1, 2] | random }}",
    "pprint": "{{ messages | pprint }}",
    "urlize": "{{ 'http://x' | urlize }}",
    "xmlattr": "{{ {'a': 1} | xmlattr }}",
    "call a number": "{{ (5)() }}",
    "call a filter result": "{{ ('x' | attr('upper') | attr('__call__'))() }}",
}
"""Each must be refused, or put out nothing of use."""

BOMBS = {
    "nested range": f"{{% for a in {RANGE} %}}{{% for b in {RANGE} %}}{{% for c in {RANGE} %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "nested range with condition": f"{{% for a in {RANGE} %}}{{% for b in {RANGE} if false %}}{{% endfor %}}{{% endfor %}}",
    "nested range of filters": f"{{% for a in {RANGE} %}}{{% set x = {RANGE} | map('string') | list %}}{{% endfor %}}",
    "nested range of tests": f"{{% for a in {RANGE} %}}{{% set x = {RANGE} | select('odd') | list %}}{{% endfor %}}",
    "nested range of sums": f"{{% for a in {RANGE} %}}{{% set x = {RANGE} | sum %}}{{% endfor %}}",
    "nested range of sorts": f"{{% for a in {RANGE} %}}{{% set x = {RANGE} | sort(reverse=true) %}}{{% endfor %}}",
    "nested range of membership": f"{{% for a in {RANGE} %}}{{% set x = 'q' in {RANGE} | list %}}{{% endfor %}}",
    "nested range of length": f"{{% for a in {RANGE} %}}{{% for b in {RANGE} | select %}}{{% if loop.length %}}{{% break %}}{{% endif %}}{{% endfor %}}{{% endfor %}}",
    "range too long": "{% for a in range(10000000) %}{% endfor %}",
    "output": f"{{% for a in {RANGE} %}}0123456789012345678901234567890123456789012345678901234567890123456789{{% endfor %}}",
    "output in a block": f"{{% set x %}}{{% for a in {RANGE} %}}{{% for b in {RANGE} %}}{'x' * 5000}{{% endfor %}}{{% endfor %}}{{% endset %}}",
    "output of a long value": "{% set s = 'x' * 4000000 %}{% set y %}{% for a in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    "recursive macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "exponential macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "exponential call block": "{% macro w() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call w() %}" * 40
    + "x"
    + "{% endcall %}" * 40,
    "recursive block": "{% block b %}{{ self.b() }}{% endblock %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 2, 3]) }}{% endfor %}",
    "macro arguments": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% endif %}{{ varargs }}{% endmacro %}{{ m(60, 1, 2) }}",
    "string times": "{{ 'A' * 20000000000 }}",
    "string times, folded": "{% set x = 'A' * 20000000000 %}",
    "times string": "{{ 20000000000 * 'A' }}",
    "list times": "{{ [1] * 2000000000 }}",
    "list of lists times": f"{NEST}ns.x * 9{END}",
    "string doubling": f"{DOUBLE}ns.x ~ ns.x{END}",
    "string doubling by plus": f"{DOUBLE}ns.x + ns.x{END}",
    "string doubling by times": f"{DOUBLE}ns.x * 2{END}",
    "string doubling by join": f"{DOUBLE}[ns.x, ns.x] | join{END}",
    "string doubling by str.join": f"{DOUBLE}ns.x.join(['', '', ''])" + END,
    "string doubling by replace": f"{DOUBLE}ns.x | replace('a', 'aa'){END}",
    "string doubling by str.replace": f"{DOUBLE}ns.x.replace('a', ns.x){END}",
    "string doubling by empty replace": f"{DOUBLE}ns.x.replace('', ns.x){END}",
    "string doubling by percent": f"{DOUBLE}'%s%s' % (ns.x, ns.x){END}",
    "string doubling by mapping": f"{DOUBLE}'%(a)s%(a)s%(a)s' % {{'a': ns.x}}{END}",
    "string doubling by format": f"{DOUBLE}'{{0}}{{0}}'.format(ns.x){END}",
    "string doubling by format filter": f"{DOUBLE}'%s%s' | format(ns.x, ns.x){END}",
    "string doubling by macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}" + f"{DOUBLE}m(ns.x){END}",
    "string doubling by tojson": f"{DOUBLE}[ns.x, ns.x] | tojson{END}",
    "string doubling by list text": f"{DOUBLE}[ns.x, ns.x] | string{END}",
    "center": "{{ 'x' | center(2000000000) }}",
    "str.center": "{{ 'x'.center(2000000000) }}",
    "ljust": "{{ 'x'.ljust(2000000000) }}",
    "zfill": "{{ 'x'.zfill(2000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(2000000000) }}",
    "many tabs": "{{ ('\\t' * 4000000).expandtabs(1000) }}",
    "indent": "{{ 'x\\ny' | indent(2000000000) }}",
    "indent by text": "{{ ('x\\n' * 100000) | indent('y' * 1000) }}",
    "tojson indent": "{{ [1, 2] | tojson(indent=2000000000) }}",
    "tojson indent of many": f"{{{{ {RANGE} | list | batch(1) | list | tojson(indent=1000) }}}}",
    "tojson separators": f"{{{{ {RANGE} | list | tojson(separators=('x' * 1000, ':')) }}}}",
    "percent width": "{{ '%2000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (2000000000, 1) }}",
    "percent precision": "{{ '%.2000000000f' % 1 }}",
    "percent many": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "format width": "{{ '{:>2000000000}'.format(1) }}",
    "format nested width": "{{ '{:>{w}}'.format(1, w=2000000000) }}",
    "format many": "{{ ('{0}' * 100000).format('x' * 1000000) }}",
    "format filter width": "{{ '%2000000000d' | format(1) }}",
    "power": "{{ 10 ** 1000000000 }}",
    "power tower": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "number squaring": "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "round precision": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "batch fill": "{{ [1] | batch(2000000000, 'x') | list }}",
    "sum of lists": f"{{{{ ({RANGE} | batch(10) | list) | sum(start=[]) }}}}",
    "attribute path": f"{{{{ {RANGE} | map(attribute='real.' * 100000) | list }}}}",
    "sort attributes": f"{{{{ {RANGE} | sort(attribute='real,' * 100000) }}}}",
    "nested lists": f"{NEST}[ns.x, ns.x]{END}{{{{ ns.x }}}}",
    "nested lists compared": f"{NEST}[ns.x, ns.x]{END}{{{{ ns.x == ns.x }}}}",
    "nested tuples as keys": f"{NEST}(ns.x, ns.x){END}{{{{ {{ns.x: 1}} }}}}",
    "nested dicts": f"{NEST}{{'a': ns.x, 'b': ns.x}}{END}{{{{ ns.x | tojson }}}}",
    "nested dict calls": f"{NEST}dict(a=ns.x, b=ns.x){END}{{{{ ns.x }}}}",
    "nested views": f"{NEST}[dict(a=ns.x).items(), dict(a=ns.x).items()]{END}{{{{ ns.x }}}}",
    "nested namespaces": f"{NEST}[namespace(a=ns.x, b=ns.x), ns.x, ns.x]{END}{{{{ ns.x }}}}",
    "nested groups": f"{NEST}[ns.x, ns.x] | groupby(0) | list{END}{{{{ ns.x }}}}",
    "nested by plus": f"{NEST}[ns.x] + [ns.x]{END}{{{{ ns.x }}}}",
    "nested by times": f"{NEST}[ns.x] * 2{END}{{{{ ns.x }}}}",
    "nested by batch": f"{NEST}[ns.x, ns.x] | batch(2) | list{END}{{{{ ns.x }}}}",
    "deep list": "{% set ns = namespace(x=[1]) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "many long strings": "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = ns.x + ['x' * 1000000 ~ i] %}{% endfor %}",
    "many slices": "{% set s = 'x' * 4000000 %}{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% set ns.x = [ns.x, s[i:]] %}{% endfor %}",
    "long list of a long string": "{% set s = 'x' * 4000000 %}{% set l = [s] * 10000 %}{{ l }}",
    "long string searched": f"{{% set s = 'ab' * 2000000 %}}{{% for i in {RANGE} %}}{{% if 'ba' ~ i in s %}}{{% endif %}}{{% endfor %}}",
    "long string split": "{{ ('a' * 4000000).split('a') | length }}{{ ('a' * 4000000) | list | length }}{{ ('a ' * 4000000).split() }}",
    "date format": "{{ strftime_now('%Y' * 10000) }}",
    "number text": "{{ ('9' * 4000000) | int }}{% for i in range(99999) %}{{ ('9' * 4000) | int }}{% endfor %}",
    "error text": "{{ raise_exception('x' * 8000000) }}",
    "undefined text": "{{ messages['x' * 8000000].y }}",
}
"""Each must be stopped."""


def sources(k: int) -> dict[str, str]:
    """Templates near the limit on their size, or a ``k``-th of it.

    Each must compile and render, or fail, in bounded time.
    """
    return {
        "parentheses": "{{ " + "(" * (100_000 // k) + ")" * (100_000 // k) + " }}",
        "brackets": "{{ " + "[" * (100_000 // k) + "]" * (100_000 // k) + " }}",
        "minus": "{{ " + "-" * (200_000 // k) + "1 }}",
        "not": "{{ " + "not " * (60_000 // k) + "1 }}",
        "attributes": "{{ x" + ".a" * (120_000 // k) + " }}",
        "filters": "{{ x" + "|e" * (120_000 // k) + " }}",
        "plus": "{{ 1" + "+1" * (120_000 // k) + " }}",
        "concat": "{{ 1" + "~1" * (120_000 // k) + " }}",
        "or": "{{ 1" + " or 1" * (50_000 // k) + " }}",
        "elif": "{% if x %}" + "{% elif x %}" * (20_000 // k) + "{% endif %}",
        "nested if": "{% if x %}" * (10_000 // k) + "{% endif %}" * (10_000 // k),
        "nested for": "{% for x in y %}" * (8_000 // k) + "{% endfor %}" * (8_000 // k),
        "nested macro": "{% macro m() %}" * (8_000 // k) + "{% endmacro %}" * (8_000 // k),
        "many expressions": "{{ x }}" * (36_000 // k),
        "many blocks": "".join(f"{{% block b{n} %}}{{% endblock %}}" for n in range(6_000 // k)),
        "unclosed": "{{" * (120_000 // k),
        "unclosed comment": "{#" * (120_000 // k),
        "unclosed raw": "{% raw %}" * (28_000 // k),
        "spaces": " " * (250_000 // k) + "{%",
        "line breaks": "\n" * (250_000 // k) + "{{",
        "quotes": "{{ '" + "\\" * (250_000 // k) + " }}",
        "digits": "{{ " + "9" * (250_000 // k) + " }}",
        "float": "{{ 1e" + "9" * (250_000 // k) + " }}",
        "constant power": "{{ 2 ** 1000000000 }}{% if 2 ** 1000000000 %}{% endif %}",
        "constant center": "{{ 'x' | center(2000000000) }}{% if 'x' | center(2000000000) %}{% endif %}",
    }


def main() -> None:
    """Run everything and print the outcomes."""
    from inference_pio.interfaces import TemplateError
    from inference_pio.processing import ChatTemplate, TemplateLimits

    limits = TemplateLimits(steps=int(sys.argv[1]), cpu_s=float(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
    outcomes = {}
    for group, templates in (("escape", ESCAPES), ("bomb", BOMBS), ("source", sources(int(sys.argv[3])))):
        for name, source in templates.items():
            start = time.process_time()
            try:
                text = ChatTemplate(source, special_tokens={}, limits=limits).render(
                    [{"role": "user", "content": "hello"}]
                )
                outcome = ["text", text[:200]]
            except TemplateError as error:
                outcome = ["refused", str(error)]
            outcomes[f"{group}: {name}"] = [*outcome, time.process_time() - start]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    json.dump({"outcomes": outcomes, "peak_kib": peak}, sys.stdout)


if __name__ == "__main__":
    main()
