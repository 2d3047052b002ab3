"""The documentation as a static site: `make docs`. It loads nothing from another host."""

project = "posttrain"
html_title = "posttrain"
copyright = "the authors of posttrain, Apache-2.0"

extensions = ["myst_parser"]
myst_heading_anchors = 3  # so that a link to a heading is checked
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "none"  # a block without a language is the output of a command
