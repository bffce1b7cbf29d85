"""`--mode=report`: one page that shows what runs did and what their networks know."""
