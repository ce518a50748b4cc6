"""Short texts about things that a reader recognises at once, for finding features that stand for them."""

TOPICS = {
    "the sea": (
        "The ship left the harbour and sailed across the ocean. Sailors on deck watched the waves, the captain looked "
        "for the coast."
    ),
    "war": (
        "The army attacked at dawn. Soldiers fired from the trenches, the regiment lost its commander, and the enemy "
        "troops retreated."
    ),
    "music": (
        "The band recorded a new album. She sang the chorus while he played the guitar, and the song reached the top "
        "of the charts."
    ),
    "food": (
        "Chop the onions and fry them in butter. Add flour, salt and cheese, then bake the bread and serve the soup "
        "with garlic."
    ),
    "government": (
        "Parliament passed the law after the election. The prime minister and the senate debated the tax policy of "
        "the government."
    ),
    "sport": (
        "The team won the match in the last minute. The striker scored a goal, and the coach praised the players of "
        "the league."
    ),
    "science": (
        "The researchers measured the cells in an experiment. The molecules react with oxygen, and the data support "
        "the theory."
    ),
    "feelings": (
        "She was so happy that she cried. He felt love and fear, then sadness and anger, and his heart was full of "
        "hope."
    ),
    "religion": (
        "The priest prayed in the church. God heard the monks, the bishop read from the Bible, and the temple was "
        "blessed."
    ),
    "money": (
        "The company sold its shares. Investors paid a high price, the bank raised its interest rates and profits "
        "fell in the market."
    ),
    "weather": (
        "The storm brought heavy rain and strong wind. Snow fell in the north, clouds covered the sky and temperatures "
        "dropped."
    ),
    "computers": (
        "Install the software and open the file. The program runs the code, the server stores the data and the user "
        "clicks the button."
    ),
}
