"""The planning experiment of the mesa study: does content that only predicts other agents come to contain a planner?"""
