"""The HTTP interfaces: one package each, none of which knows another; and how to add one.

Five older interfaces are served as their documents print them, each by a profile of etc/profiles:
coder (document 000), qwen2 (001), guide (002), browser (003), news (004). coder/ and generate/
(qwen2) speak for one each, openai/ for the others; ops/ is for operators, batches/ for requests in
files, wherever openai/ is served.

An interface is a package here: addresses, and bodies in and out. An error dialect is one of the
forms that errors.py gives an error. They are two axes: a profile names one of each.

An interface more is a package here, and:

    settings/profile.py       its name in Interface. Profiles finds a profile by model, names models
                              and keeps keys to them for "openai" alone (`_openai`); any other
                              interface has its first profile (`_choose_profile` in auth.py)
    app.py                    its blueprint, called like the interface, in INTERFACES; a package
                              that the same profiles serve, as responses/ by openai's, beside it
    etc/profiles/             a profile of it: app.py registers no blueprint without one
    request_context/auth.py   the scope of its addresses, where /v1/ does not cover them
    request_context/cors.py   headers that scripts of other origins send or read
    openapi/                  its operations, their words in words.toml, its answers in BODIES

An error dialect more is a name in DialectName (settings/profile.py), a function in errors.DIALECTS,
and its body in openapi/error_bodies.py.
"""
