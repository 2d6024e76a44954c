-- Signatures name a class of the page they are on as `__main__.X`, since nbdev runs the page: readers know it as `X`.
function CodeBlock(block)
  block.text = block.text:gsub('__main__%.', '')
  return block
end
