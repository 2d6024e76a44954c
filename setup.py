"Gives setuptools the fields that pyproject.toml lists as dynamic"
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
settings = ConfigParser()
settings.read(root/'settings.ini', encoding='utf-8')
lines = {k: v.strip().splitlines() for k,v in settings['DEFAULT'].items()}
# PyPI shows README.md without the repository beside it
pictures = 'https://raw.githubusercontent.com/fastmem/fastmem/main/nbs/images/'
readme = (root/'README.md').read_text(encoding='utf-8').replace('](nbs/images/', f']({pictures}')

extras = {o: lines[f'{o}_requirements'] for o in ('dev','distributed')}
setup(install_requires=lines['requirements'], extras_require=extras, classifiers=lines['classifiers'],
      long_description=readme, long_description_content_type='text/markdown')
