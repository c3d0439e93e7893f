"""What a mathematical answer is, and whether two are the same, by the policy of docs/answers.md.

`notation` brings many spellings to one; `reading` takes an `answer` from them, with `quantities` (units, `numerals`,
prose) and `options`. `compare` holds two structures together, `equality` their leaves: by exact `forms` of
`expressions`, else by `values` at the points of `sampling`. What is left goes to `symbolic`, which has `precise`
numbers and math-verify, in processes that can be killed.
"""
