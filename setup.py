"Gives setuptools the fields that pyproject.toml lists as dynamic, from settings.ini, their one home"
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

settings = ConfigParser()
settings.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
lines = {k: v.strip().splitlines() for k,v in settings['DEFAULT'].items()}

setup(install_requires=lines['requirements'], extras_require={'dev': lines['dev_requirements']}, classifiers=lines['classifiers'])
