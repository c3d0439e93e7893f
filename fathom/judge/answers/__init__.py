"""What a mathematical answer is, and whether two are the same, by the policy of docs/answers.md.

`notation` brings many spellings to one, `reading` takes an `answer` from them, `compare` settles most pairs with
`expressions`, `forms`, `numerals` and `units`; what is left goes to `symbolic`, in processes that can be killed.
"""
