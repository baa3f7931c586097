"""The HTTP interfaces: one package a dialect, none of which knows another.

Five older interfaces are served as their documents print them, each by a profile of etc/profiles:
coder (document 000), qwen2 (001), guide (002), browser (003), news (004). coder/ and generate/
(qwen2) speak for one each, openai/ for the others; ops/ is for operators.

A dialect more is a package here; its way to say errors in errors.DIALECTS; its names among
Interface and DialectName in settings/profile.py; its blueprint, called like the interface, in
app.INTERFACES; its scope in request_context/auth.py; its operations in openapi/operations.py, with
their words in words.toml.
"""
