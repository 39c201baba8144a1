"""The page: whole without anything else, honest about what is missing."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from test_eval import TINY, folder, recording, small_world  # noqa: F401  (fixtures)

from forcing.eval.films import Shooting, shoot, strip
from forcing.eval.plots import Axes, Series, chart, smoothed, thinned
from forcing.eval.report import report
from forcing.eval.rooms import evaluate
from forcing.eval.rows import candidates
