"""The documentation without Quarto, which machines without a network can't install.

    python .ci/docs.py          # _docs/*.html from every notebook, then checks all their links and anchors
    python .ci/docs.py readme   # README.md and nbs/llms.txt from nbs/index.ipynb

The deployed site is Quarto's (`nbdev-docs`). Both start from the notebooks as nbdev processes them."""

import json, posixpath, re, shutil, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import pypandoc
from fastcore.nbio import nb_frontmatter, read_nb
from nbdev.config import get_config, nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.readme_filter import doc_link
from nbdev.serve import proc_nbs  # what `nbdev-proc-nbs` runs, which would first try to install Quarto with sudo

index_nb = 'index.ipynb'  # nbdev's own `nbdev-readme` is told of another, so that it leaves README.md alone

# From a processed notebook to markdown

def fence(text, lang=''): return f'~~~~~~{lang}\n{text.rstrip()}\n~~~~~~'
def joined(text): return text if isinstance(text, str) else ''.join(text or '')

def output_md(
    output, # Of a code cell
):
    "One output as markdown, in the richest form it has"
    if output.output_type=='stream': return fence(joined(output.text))
    if output.output_type=='error': return fence(f'{output.ename}: {output.evalue}')
    data = {k: joined(v) for k,v in output.data.items()}
    if 'text/markdown' in data: return data['text/markdown']
    if 'text/html' in data: return fence(data['text/html'], ' {=html}')
    for kind in ('image/png','image/jpeg'):
        if kind in data: return f'![](data:{kind};base64,{data[kind].strip()})'
    return fence(data['text/plain'])

def cell_md(
    cell,
    is_folded=False, # Whether its code is
):
    "A cell as markdown, obeying Quarto's `#|` options, the only ones that nbdev leaves in"
    if cell.cell_type=='markdown': return cell.source
    if cell.cell_type!='code': return ''
    options = dict(re.findall(r'^#\|\s*([\w-]+):\s*(\S+)', cell.source, flags=re.M))
    shown = {o for o in ('echo','output') if 'false' not in (options.get(o), options.get('include'))}
    source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    parts = [fence(source, 'python')] if 'echo' in shown and source.strip() else []
    if is_folded and parts: parts = ['<details><summary>Code</summary>', *parts, '</details>']
    if 'output' in shown: parts += map(output_md, cell.get('outputs', []))
    return '\n\n'.join(parts)

def page_md(
    path, # Processed notebook, or a markdown page
):
    "The whole page as markdown under its title and description"
    if path.suffix!='.ipynb': return path.read_text()
    nb = read_nb(path)
    about = nb_frontmatter(nb)
    head = [f'# {about["title"]}'] if 'title' in about else []
    if 'description' in about: head.append(f'> {about["description"]}')
    return '\n\n'.join(head + [cell_md(o, bool(about.get('code-fold'))) for o in nb.cells])

# From markdown to a page, with links to notebooks turned into links to pages

def map_links(
    node, # Of pandoc's syntax tree; changed in place
    f, # str -> str
    kind='Link', # 'Link' or 'Image'
):
    if isinstance(node, dict):
        if node.get('t')==kind: node['c'][2][0] = f(node['c'][2][0])
        node = list(node.values())
    if isinstance(node, list):
        for o in node: map_links(o, f, kind)

def convert(
    md, # Pandoc's markdown
    to, # Pandoc's name of a format
    link, # str -> str
    *args, # More of pandoc's
    image=str # str -> str, of pictures
):
    doc = json.loads(pypandoc.convert_text(md, 'json', 'markdown-smart-implicit_figures'))
    map_links(doc['blocks'], link)
    map_links(doc['blocks'], image, 'Image')
    return pypandoc.convert_text(json.dumps(doc), to, 'json', extra_args=args)

def is_page(path): return path.suffix in ('.ipynb','.qmd','.md')

def page_link(link):
    "Where Quarto puts the page of a relative link to a notebook"
    u = urlsplit(link)
    if u.scheme or u.netloc or not is_page(Path(u.path)): return link
    return urlunsplit(u._replace(path=nbpath2html(u.path).as_posix()))

def render(
    src, # Folder of processed notebooks
    dest, # Folder to make anew
):
    "Every page of `src` as HTML, and the other files as they are"
    shutil.rmtree(dest, ignore_errors=True)
    for path in sorted(o for o in src.rglob('*') if o.is_file() and o.suffix not in ('.yml','.lua')):
        rel = path.relative_to(src)
        out = dest/(nbpath2html(rel) if is_page(path) else rel)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not is_page(path): shutil.copy(path, out)
        else: out.write_text(convert(page_md(path), 'html', page_link, '--standalone', '--toc', f'--metadata=pagetitle={out.stem}', f'--lua-filter={src/"names.lua"}'))

# Links and anchors

class Page(HTMLParser):
    "The ids of an HTML page, and what it links to"
    def __init__(self,
        path, # File
    ):
        super().__init__()
        self.ids,self.links = set(),[]
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        for k,v in attrs:
            if k=='id': self.ids.add(v)
            elif k in ('href','src') and v is not None: self.links.append(v)

def broken_links(
    dest, # Folder of HTML pages
    site, # URL that `dest` will have: links to it are checked as well
):
    "(page, link, what is wrong) of every link that leads nowhere in `dest`, and how many were checked"
    pages = {o.relative_to(dest).as_posix(): Page(o) for o in sorted(dest.rglob('*.html'))}
    broken,n = [],0
    for name,page in pages.items():
        for link in page.links:
            inside,base = link.startswith(site), '' if link.startswith(site) else posixpath.dirname(name)
            u = urlsplit(link[len(site):] if inside else link)
            if u.scheme or u.netloc: continue
            n += 1
            target = posixpath.normpath(posixpath.join(base, unquote(u.path))) if u.path else 'index.html' if inside else name
            if (dest/target).is_dir(): target = posixpath.join(target, 'index.html')
            if not (dest/target).exists(): broken.append((name, link, 'no such page'))
            elif u.fragment and target in pages and unquote(u.fragment) not in pages[target].ids: broken.append((name, link, 'no such anchor'))
    return broken,n

# What a reader would trip over

_code_width = 79     # what a page shows of a line at the width of GitHub
_output_width = 400
_block = re.compile(r'^(`{3,}|~{3,})[^\n]*\n(.*?)^\1', flags=re.M|re.S)

def is_guide(
    path, # Of a notebook, below `nbs`
)->bool:
    "Whether it is for users: the home page, the doctor, the API by use and the tutorials"
    return path.parts[0]=='tutorials' or path.name in (index_nb,'doctor.ipynb','reference.ipynb')

def cell_code(cell):
    "The code that a cell shows"
    if cell.cell_type=='code': return '' if re.search(r'^#\|\s*(hide|echo: false)', cell.source, flags=re.M) else cell.source
    return '\n'.join(o[2] for o in _block.finditer(cell.source))

def output_text(output):
    "What is shown of an output as text, without what a terminal writes over"
    text = joined(output.text) if output.output_type=='stream' else joined(output.data.get('text/plain')) if 'data' in output else ''
    if 'data' in output and len(output.data)>1: return ''  # a table or a picture is shown instead
    return text

def bare_heading(cell):
    "The name in a heading that nbdev made, if nothing is said below it"
    md = '\n'.join(joined(o.data.get('text/markdown')) for o in cell.get('outputs', []) if 'data' in o)
    name = re.search(r'^#+ (\S+)$', md, flags=re.M)
    return name and not re.search(r'^\*.+', _block.sub('', md), flags=re.M|re.S) and name[1]

def complaints(
    src, # Folder of processed notebooks
):
    "(page, what is wrong) of each line that is too wide, and of each heading without a sentence"
    for path in sorted(src.rglob('*.ipynb')):
        page = path.relative_to(src)
        for cell in read_nb(path).cells:
            for line in cell_code(cell).splitlines() if is_guide(page) else ():
                if len(line)>_code_width: yield page,f'{len(line)} characters of code: {line}'
            for line in '\n'.join(map(output_text, cell.get('outputs', []))).split('\n'):  # a progress bar is one line
                if len(line)>_output_width: yield page,f'{len(line)} characters of output: {line[:60]} …'
            if cell.source.rpartition('\n')[2].startswith('show_doc(') and (name := bare_heading(cell)): yield page,f'no sentence below the heading {name}'

def leaked_names(
    dest, # Folder of HTML pages
):
    "(page, what is wrong) of each signature that names the notebook's own namespace"
    for path in sorted(dest.rglob('*.html')):
        if '__main__.' in path.read_text(): yield path.relative_to(dest),'a signature has `__main__.`'

# The two commands

def make_readme(cfg):
    path = proc_nbs(file_glob=index_nb)/index_nb
    def image(o): return o if urlsplit(o).scheme else f'nbs/{o}'
    md = convert(page_md(path), 'gfm', lambda o: doc_link(o, cfg.doc_url), '--wrap=preserve', image=image)
    if 'data:image' in md: raise SystemExit(f'{index_nb}: GitHub shows no pictures that are part of README.md: link to a file instead')
    (cfg.config_path/'README.md').write_text(md.rstrip()+'\n')

def make_llms(cfg):
    "The home page without pictures, for language models: links lead to the Markdown that is published beside each page"
    def link(o): return re.sub(r'\.html(?=#|$)', '.html.md', doc_link(o, cfg.doc_url))
    cells = [o.source for o in read_nb(cfg.nbs_path/index_nb).cells if o.cell_type=='markdown' and '![' not in o.source]
    text = re.sub(r'(?<=\]\()[^)\s]+', lambda o: link(o[0]), '\n\n'.join(cells))
    (cfg.nbs_path/'llms.txt').write_text(text+'\n')

def make_docs(cfg):
    refresh_quarto_yml()
    src = proc_nbs(force=True)
    render(src, cfg.doc_path)
    broken,n = broken_links(cfg.doc_path, cfg.doc_url)
    wrong = [*complaints(src), *leaked_names(cfg.doc_path)]
    for o in broken: print('{}: {}: {}'.format(*o))
    for o in wrong: print('{}: {}'.format(*o))
    if broken or wrong: raise SystemExit(f'{len(broken)} of {n} links are broken, {len(wrong)} other complaints')
    print(f'{n} links in {len(list(cfg.doc_path.rglob("*.html")))} pages, none broken')

if __name__=='__main__':
    cfg = get_config()
    if sys.argv[1:]==['readme']:
        make_readme(cfg)
        make_llms(cfg)
    elif not sys.argv[1:]: make_docs(cfg)
    else: raise SystemExit(__doc__)
